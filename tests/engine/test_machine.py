"""What stops a run that would use the wrong device, and what is measured of a device."""
import subprocess
import sys

import pytest

from tests.runs import environment
from vit_efficient.engine import machine as device


@pytest.mark.parametrize("file, extra", [
    ("nvidia0", "cuda12"), ("accel0", "tpu"), ("vfio/0", "tpu")])
def test_a_cpu_run_beside_an_accelerator_is_refused(tmp_path, monkeypatch, file, extra):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    found = device.accelerator(tmp_path)
    monkeypatch.setattr(device, "accelerator", lambda folder: found)
    device.refuse_accidental_cpu()                       # JAX_PLATFORMS=cpu: on purpose
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(ValueError, match=rf'pip install "jax\[{extra}\]=='):
        device.refuse_accidental_cpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device.refuse_accidental_cpu()


def test_no_driver_no_accelerator(tmp_path):
    assert device.accelerator(tmp_path) is None


def test_peak_memory_grows_with_what_is_used():
    before = device.peak_memory()
    block = bytearray(400 * 2 ** 20)
    block[::4096] = b"x" * len(block[::4096])
    assert device.peak_memory() >= max(before, 400 * 2 ** 20)


def test_the_cache_is_filled_and_read(tmp_path):
    code = ("import jax, jax.numpy as jnp; from vit_efficient.engine import machine;"
            "machine.compile_cache();"
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0);"
            "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True,
                       env=environment() | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)})
        files = {p.name for p in tmp_path.iterdir() if "cache" in p.name}
        assert files
    assert files == {p.name for p in tmp_path.iterdir() if "cache" in p.name}
