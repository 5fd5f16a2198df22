"""What a machine has, and what JAX makes of it.

Every job begins with `refuse_accidental_cpu`, so that a missing CUDA plugin does not turn an hour
into a week unnoticed, and with `compile_cache`, so that its next start loads what it compiles.
"""
from importlib import metadata
import os
from pathlib import Path
import sys

import jax

# What a driver puts into /dev -> the accelerator and the extra of jax that drives it.
DRIVERS = {"nvidia0": ("an NVIDIA GPU", "cuda12"), "kfd": ("an AMD GPU", "rocm"),
           "accel0": ("a TPU", "tpu"), "vfio/0": ("a TPU", "tpu")}


def refuse_accidental_cpu() -> None:
    """Raises ValueError where JAX uses the CPU although this machine has an accelerator.

    `JAX_PLATFORMS=cpu` or an empty `CUDA_VISIBLE_DEVICES` say that it is on purpose.
    """
    asked = os.environ.get("JAX_PLATFORMS") == "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if asked or jax.default_backend() != "cpu" or not (found := accelerator(Path("/dev"))):
        return
    name, extra = found
    if extra == "cuda12" and "jax-cuda13-plugin" in _installed():
        extra = "cuda13"
    raise ValueError(f"this machine has {name}, but JAX {jax.__version__} sees only the CPU: "
                     f"pip install \"jax[{extra}]=={jax.__version__}\" repairs that; "
                     f"JAX_PLATFORMS=cpu trains on the CPU on purpose")


def accelerator(folder: Path) -> tuple[str, str] | None:
    """(name, extra of jax) of the accelerator whose driver stands in `folder`, or None."""
    return next((found for name, found in DRIVERS.items() if (folder / name).exists()), None)


def compile_cache() -> None:
    """Keeps compiled programs on disk, so that the next start loads them: in
    $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/vit_efficient."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "vit_efficient"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def peak_memory() -> int:
    """The most bytes in use up to now: of the fullest local device, of the process on the CPU; 0
    where the system does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]:
        return max(peaks)
    try:
        import resource
    except ImportError:                                  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _installed() -> set[str]:
    return {dist.metadata["Name"] for dist in metadata.distributions()}
