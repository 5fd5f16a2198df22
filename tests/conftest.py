"""Eight CPU devices for every test, so that sharded runs are real; the same examples every time."""
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                           + " --xla_force_host_platform_device_count=8")

from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="SIGKILLs of the resume test")
