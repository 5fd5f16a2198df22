"""The fixtures of `tests/golden/scala/`, see checking.py."""
from tests.golden.checking import test_file as test_file
