"""Eight CPU devices for every test, so that sharded runs are real; the same examples every time."""
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the tests' time: little optimisation, and each program once.
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0"])
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR",
                      str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))

from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="SIGKILLs of the resume test")
