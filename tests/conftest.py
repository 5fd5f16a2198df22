"""Eight CPU devices for every test, so that sharded runs are real; the same examples every time."""
from importlib.metadata import version
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the tests' time: little optimisation, the emitters that make a program in a
# third of the time (up to JAX 0.10; a flag that XLA does not know ends the process), no splitting
# into threads; and each program once, for all workers.
JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1",
    *["--xla_cpu_use_fusion_emitters=false"][:JAXLIB <= (0, 10)]])
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR",
                      str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from hypothesis import settings

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="SIGKILLs of the resume test")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """A worker for each core, but no more than files; one file runs without workers."""
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    files = sum(len(list(path.rglob("test_*.py"))) if path.is_dir() else 1 for path in paths)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores, files) if files > 1 else 0


def pytest_collection_modifyitems(items):
    """Files with slow tests and golden numbers first: the time of all is bound by what begins
    last."""
    slow = {item.path for item in items
            if item.get_closest_marker("slow") or item.path.parent.name == "golden"}
    items.sort(key=lambda item: item.path not in slow)
