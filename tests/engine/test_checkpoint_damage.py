"""Hurting checkpoints. `python -m tests.engine.test_checkpoint_damage 200` does it 200 times, and
counts."""
import collections
import gc
from pathlib import Path
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine.states import LIKE, abstract, make_state, on_disk, same_bits, write_steps
from tests.runs import free_port
from vit_efficient.engine.checkpoint import Checkpoints, DamagedCheckpoint

# Orbax leaves a damaged step's other reads half done.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    return write_steps(tmp_path_factory.mktemp("steps"))


@pytest.fixture
def directory(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


DAMAGES = ("flip", "flip", "truncate", "delete")


def attack(pristine: Path, directory: Path, number: int) -> tuple[str, str]:
    """Hurts one file of step 2 in a copy of `pristine` and restores; returns (damage, outcome).

    Every file meets every damage in turn. Raises AssertionError where a state comes back that was
    never saved.
    """
    rng = random.Random(number)
    shutil.copytree(pristine, directory)
    files = sorted(path for path in (directory / "2").rglob("*") if path.is_file())
    path, damage = files[number // len(DAMAGES) % len(files)], DAMAGES[number % len(DAMAGES)]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:rng.randrange(len(content))])
    else:
        path.unlink()
    with Checkpoints(directory) as checkpoints:
        step, state, _ = checkpoints.restore(LIKE)
    assert same_bits(state, make_state(step)), f"{damage} of {path}: silently wrong"
    assert (directory / "bad-2").exists() == (step == 1)
    return damage, "harmless" if step == 2 else "set aside"


@pytest.mark.parametrize("first", range(0, 48, 8))
def test_no_damage_is_silent(first, two_steps, tmp_path):
    outcomes = {attack(two_steps, tmp_path / str(number), number)[1]
                for number in range(first, first + 8)}
    assert outcomes <= {"set aside", "harmless"}
    # Orbax's reads that were left half done complain here rather than in another test
    gc.collect()


def test_a_leaf_that_orbax_leaves_out_is_noticed(directory):
    path = directory / "2/state/_METADATA"
    text = path.read_text().replace("'head', 'kernel'", "'head', 'kernfl'")
    path.write_text(text.replace('"kernel"', '"kernfl"'))
    with Checkpoints(directory) as checkpoints, pytest.raises(DamagedCheckpoint, match="/kernel"):
        checkpoints.restore(LIKE, 2)


def test_a_step_that_is_no_checkpoint_is_set_aside_and_its_number_free_again(directory, caplog):
    (directory / "99").mkdir()
    (directory / "bad-99").mkdir()
    shutil.rmtree(directory / "2/state")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(LIKE)[0] == 1
        names = sorted(path.name for path in directory.iterdir())
        assert names == ["1", "bad-2", "bad-99", "bad-99+"]
        for words in "99: FileNotFoundError", "renamed to bad-99+", "step 1 is used":
            assert words in caplog.text
        checkpoints.save(99, make_state(99))
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [1, 99]
        assert same_bits(checkpoints.restore(LIKE)[1], make_state(99))


def test_a_step_under_another_number_is_damaged(directory):
    (directory / "2").rename(directory / "3")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(LIKE)[0] == 1


def test_a_reader_changes_nothing(directory, caplog):
    (directory / "2/manifest/metadata").write_text("{}")
    (directory / "5.orbax-checkpoint-tmp").mkdir()
    before = on_disk(directory)
    with Checkpoints(directory, read_only=True) as checkpoints:
        assert checkpoints.restore(LIKE)[0] == 1 and checkpoints.best_step() == 1
    assert on_disk(directory) == before and "left alone, step 1 is used" in caplog.text


def test_a_damaged_step_that_was_asked_for_is_an_error(directory):
    (directory / "2/manifest/metadata").write_text("{}")
    before = on_disk(directory)
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match="/2: ValueError"):
            checkpoints.restore(LIKE, 2)
    (directory / "1/manifest/metadata").unlink()
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match="no checkpoint is whole"):
            checkpoints.restore(LIKE)
    assert on_disk(directory).keys() == before.keys() - {str(directory / "1/manifest/metadata")}


def child(program: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), *arguments],
                            cwd=Path(__file__).parents[2], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


KILLED = """
    import os, signal, sys, time
    import jax.numpy as jnp
    from vit_efficient.engine.checkpoint import Checkpoints
    directory, delay = sys.argv[1:]
    checkpoints = Checkpoints(directory)
    for step in 1, 2:
        checkpoints.wait()
        checkpoints.save(step, {"w": jnp.full(2**23, step, jnp.float32) * jnp.arange(2**23)})
    time.sleep(float(delay))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_save_leaves_the_step_before(tmp_path):
    killed = {delay: child(KILLED, str(tmp_path / delay), delay) for delay in ("0", "0.03", "0.1")}
    for delay, process in killed.items():
        assert process.wait() == -signal.SIGKILL, process.stdout.read()
        assert delay != "0" or list((tmp_path / delay).glob("2.*tmp*"))
        with Checkpoints(tmp_path / delay) as checkpoints:
            like = {"w": abstract(jnp.zeros(2**23))}
            step, state, _ = checkpoints.restore(like)
            expected = np.float32(step) * np.arange(2**23, dtype=np.float32)
            np.testing.assert_array_equal(state["w"], expected)
            assert step == 1 or delay != "0"
            checkpoints.save(3, {"w": jnp.zeros(2)})
        for pattern in "*tmp*", "bad*":
            assert not list((tmp_path / delay).glob(pattern))


@pytest.mark.parametrize("where", ["due", "save", "close"])
def test_a_failed_save_is_an_error_soon(where, directory):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(directory)
    state = {"w": jax.random.normal(jax.random.key(0), (2**20,))}
    try:
        # as a full disk: a write fails half way
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
        checkpoints.save(3, state)
        with pytest.raises(Exception, match="(?i)too large|EFBIG"):
            if where == "due":
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    checkpoints.due(4, 100)
            elif where == "save":
                checkpoints.save(4, state)
            else:
                checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.steps() == [1, 2] and checkpoints.restore(LIKE)[0] == 2
    if where != "close":
        checkpoints.save(3, make_state(3))
        checkpoints.close()
        assert checkpoints.steps() == [1, 2, 3]


def test_a_directory_that_cannot_be_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        Checkpoints(tmp_path / "file" / "checkpoints")


TWO_PROCESSES = """
    import os, sys
    import jax, numpy as np
    rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, rank)
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from vit_efficient.engine.checkpoint import Checkpoints
    x = np.random.RandomState(0).randn(64, 32).astype(np.float32)
    def sharding(*axes):
        mesh = Mesh(np.array(jax.devices()).reshape(axes), ("a", "b"))
        return NamedSharding(mesh, PartitionSpec("a", "b"))
    with Checkpoints(directory, every_minutes=1e-9) as checkpoints:
        for step in 1, 2:
            w = jax.make_array_from_callback(x.shape, sharding(8, 2), lambda i: step * x[i])
            checkpoints.save(step, {"w": w})
        read = checkpoints._arrays
        if rank == 1:           # one process alone cannot read its shards of the newest step
            checkpoints._arrays = (
                lambda step, like: read(step, like) if step == 1 else (None, "a broken disk"))
        like = {"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(2, 8))}
        step, state, _ = checkpoints.restore(like)
        for shard in state["w"].addressable_shards:
            np.testing.assert_array_equal(shard.data, x[shard.index])
        checkpoints.save(2, state)
        checkpoints.wait()
        print("restored", step, checkpoints.steps(), checkpoints.overdue())
"""


def test_two_processes_take_the_same_step(tmp_path):
    port = str(free_port())
    processes = [child(TWO_PROCESSES, str(rank), port, str(tmp_path)) for rank in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "restored 1 [1, 2] True" in output, output
    assert (tmp_path / "bad-2").exists()


def main(count: int) -> None:
    outcomes = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        pristine = write_steps(Path(folder) / "pristine")
        for number in range(count):
            outcomes[attack(pristine, Path(folder) / "hurt", number)] += 1
            shutil.rmtree(Path(folder) / "hurt")
    for (damage, outcome), times in sorted(outcomes.items()):
        print(f"{damage:10} {outcome:10} {times}")
    print(f"silently wrong: 0 of {count}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
