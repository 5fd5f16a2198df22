"""Saving, restoring and hurting checkpoints. `python -m tests.test_checkpoint 200` runs 200 damages and counts them."""
import collections
import json
from pathlib import Path
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_efficient.checkpoint import FORMAT, Checkpoints, DamagedCheckpoint
from vit_efficient.manifest import compare, manifest, seal, unseal

# Orbax leaves a damaged step's other reads half done.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class State(struct.PyTreeNode):
    step: jax.Array
    seed: jax.Array
    params: dict
    collections: dict
    opt_state: tuple
    ema: dict
    masks: dict


def make_state(number: int, width: int = 32) -> State:
    """What a run's state may hold: named tuples, empty nodes, None, bool, bfloat16, scalars, an array without elements."""
    rng = np.random.RandomState(number)
    params = {"blocks_0": {"kernel": jnp.float32(rng.randn(width, 16)), "bias": jnp.float32(rng.randn(16))},
              "head": {"kernel": jnp.asarray(rng.randn(16, 8), jnp.bfloat16), "none": jnp.zeros((0, 3))}, "pool": {}}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(number, x.dtype), opt_state)
    masks = {"blocks_0": {"kernel": jnp.asarray(rng.rand(width, 16) > 0.5), "bias": None}, "head": None}
    return State(step=jnp.int32(number), seed=jnp.uint32(2**32 - 1), params=params, collections={}, opt_state=opt_state,
                 ema={"params": params, "collections": {}}, masks=masks)


def spread(tree, *axes: int):
    """The tree's arrays over a mesh of 8 devices, large ones split along both axes of the mesh; or on one device."""
    if not axes:
        return jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), tree)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(axes), ("data", "fsdp"))
    def put(x):
        spec = ("data", "fsdp") if x.ndim == 2 and x.size else ()
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
    return jax.tree.map(put, tree)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def same_bits(a, b) -> bool:
    return (jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))))


def on_disk(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory) -> Path:
    """A directory with the steps 1 and 2; to be copied."""
    return write_steps(tmp_path_factory.mktemp("steps"))


@pytest.fixture
def directory(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def write_steps(directory: Path) -> Path:
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, make_state(1), {"top1": 0.5}, {"teacher": None})
        checkpoints.save(2, make_state(2))
    return directory


LIKE = abstract(make_state(0))


# ------------------------------------------------------------------------------------------------- saving, restoring
def test_a_state_comes_back_bit_for_bit(directory):
    with Checkpoints(directory) as checkpoints:
        step, state, record = checkpoints.restore(LIKE)
        assert step == 2 and same_bits(state, make_state(2)) and isinstance(state, State)
        step, state, record = checkpoints.restore(LIKE, 1)
        assert step == 1 and same_bits(state, make_state(1))
        assert record["metrics"] == {"top1": 0.5} and record["extra"] == {"teacher": None}
        assert checkpoints.restore(LIKE, "best")[0] == 1
        with pytest.raises(ValueError, match="checkpoint 7: .* holds steps 1, 2"):
            checkpoints.restore(LIKE, 7)


def test_nothing_there_is_none(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(LIKE) is None and checkpoints.best_step() is None
    with Checkpoints(tmp_path / "other", read_only=True) as checkpoints:
        assert checkpoints.restore(LIKE) is None and not (tmp_path / "other").exists()


@pytest.mark.parametrize("axes", [(2, 4), (4, 2), ()])
def test_a_state_moves_to_another_mesh(axes, tmp_path):
    state, like = spread(make_state(3), 8, 1), abstract(spread(make_state(0), *axes))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        _, moved, record = checkpoints.restore(like)
    assert same_bits(state, moved) and not compare(record["leaves"], manifest(moved))
    assert all(x.sharding == y.sharding for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(like)))


def test_parts_are_read_and_verified_without_the_rest(directory):
    state, like = make_state(2), {"params": LIKE.params, "collections": {}, "ema": LIKE.ema}
    with Checkpoints(directory, read_only=True) as checkpoints:
        forge(directory, "masks/blocks_0/kernel")
        step, parts, _ = checkpoints.restore_parts(like)
        assert step == 2 and same_bits(parts, {"params": state.params, "collections": {}, "ema": state.ema})
        with pytest.raises(ValueError, match="masks/blocks_0/kernel: missing"):
            checkpoints.restore_parts({"masks": {}})
        with pytest.raises(DamagedCheckpoint, match="1 of 20 leaves differ .*masks/blocks_0/kernel"):
            checkpoints.restore(LIKE, 2)
        forge(directory, "ema/params/head/kernel")
        assert checkpoints.restore_parts(like)[0] == 1


def forge(directory: Path, leaf: str) -> None:
    """Another fingerprint for one leaf of step 2, under a valid checksum."""
    path = directory / "2/manifest/metadata"
    record = unseal(path.read_text())
    record["leaves"][leaf]["fingerprint"] = 16 * "0"
    path.write_text(json.dumps(seal(record)))


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree), donate_argnums=0)
    state = {"w": jnp.arange(2**20, dtype=jnp.float32)}
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state)
            state = change(state)
        for step in range(4):
            _, restored, _ = checkpoints.restore(abstract(state), step)
            np.testing.assert_array_equal(restored["w"], np.arange(2**20, dtype=np.float32) + step)


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, top1 in enumerate([0.5, 0.9, None, 0.8, None, float("nan")], 1):
            checkpoints.save(step, state, top1 and {"top1": top1})
        checkpoints.save(6, {"w": jnp.zeros(3)})                                # is there already
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6] and checkpoints.best_step() == 2
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(abstract(state))[1]["w"], 1)
        checkpoints.save(7, state)
        checkpoints.save(8, state, {"top1": 0.9})
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8] and checkpoints.best_step() == 8


def test_when_a_save_is_due(tmp_path):
    def due(every_epochs):
        with Checkpoints(tmp_path, every_epochs=every_epochs) as checkpoints:
            return [step for step in range(1, 31) if checkpoints.due(step, 10)]

    assert (due(1.0), due(1.1), due(0.5), due(0.0)) == ([10, 20, 30], [11, 22], [5, 10, 15, 20, 25, 30], [])
    for minutes, expected in (0.0, False), (1e-9, True), (60.0, False):
        with Checkpoints(tmp_path, every_minutes=minutes) as checkpoints:
            assert checkpoints.overdue() is expected


# --------------------------------------------------------------------------------------------------- a wrong config
def test_another_state_is_one_error_that_names_every_difference(directory):
    params = LIKE.params | {"blocks_0": {"kernel": abstract(jnp.ones((4, 4)))}, "new": abstract(jnp.ones(2))}
    like = LIKE.replace(params=params, seed=abstract(jnp.int32(0)))
    before = on_disk(directory)
    with Checkpoints(directory) as checkpoints, pytest.raises(ValueError) as caught:
        checkpoints.restore(like)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        "params/blocks_0/bias", "params/blocks_0/kernel", "params/new", "seed"]
    assert "seed: expected uint32[], found int32[]" in str(caught.value)
    assert on_disk(directory) == before


def test_a_newer_format_is_an_error(directory):
    path = directory / "2/manifest/metadata"
    path.write_text(json.dumps(seal(unseal(path.read_text()) | {"format": FORMAT + 1})))
    with Checkpoints(directory) as checkpoints, pytest.raises(ValueError, match="newer version"):
        checkpoints.restore(LIKE)
    assert (directory / "2").exists()


# ----------------------------------------------------------------------------------------------------------- damage
DAMAGES = ("flip", "flip", "truncate", "delete")


def attack(pristine: Path, directory: Path, number: int) -> tuple[str, str]:
    """Hurts one file of step 2 in a copy of `pristine` and restores; returns (damage, outcome).

    Every file meets every damage in turn. Raises AssertionError where a state comes back that was never saved.
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
    outcomes = {attack(two_steps, tmp_path / str(number), number)[1] for number in range(first, first + 8)}
    assert outcomes <= {"set aside", "harmless"}


def test_flipped_weights_are_set_aside(two_steps, tmp_path):
    """Bits in the file that holds the arrays, whatever the other files are called."""
    for number in range(4):
        directory = Path(shutil.copytree(two_steps, tmp_path / str(number)))
        path = max((directory / "2/state").rglob("d/*"), key=lambda path: path.stat().st_size)
        for path in (directory / "2/state").rglob("d/*"):
            content = bytearray(path.read_bytes())
            content[len(content) * (number + 1) // 5] ^= 1
            path.write_bytes(content)
        with Checkpoints(directory) as checkpoints:
            step, state, _ = checkpoints.restore(LIKE)
        assert step == 1 and same_bits(state, make_state(1))


def test_a_step_that_is_no_checkpoint_is_set_aside_and_its_number_free_again(directory, caplog):
    (directory / "99").mkdir()
    (directory / "bad-99").mkdir()
    shutil.rmtree(directory / "2/state")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.restore(LIKE)[0] == 1
        assert sorted(path.name for path in directory.iterdir()) == ["1", "bad-2", "bad-99", "bad-99+"]
        assert all(word in caplog.text for word in ("99: FileNotFoundError", "renamed to bad-99+", "step 1 is used"))
        checkpoints.save(99, make_state(99))
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.steps() == [1, 99] and same_bits(checkpoints.restore(LIKE)[1], make_state(99))


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
    with Checkpoints(directory) as checkpoints, pytest.raises(DamagedCheckpoint, match="/2: ValueError"):
        checkpoints.restore(LIKE, 2)
    (directory / "1/manifest/metadata").unlink()
    with Checkpoints(directory) as checkpoints, pytest.raises(DamagedCheckpoint, match="no checkpoint is whole"):
        checkpoints.restore(LIKE)
    assert on_disk(directory).keys() == before.keys() - {str(directory / "1/manifest/metadata")}


# --------------------------------------------------------------------------------------------- killed, full, several
def child(program: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), *arguments], cwd=Path(__file__).parents[1],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


KILLED = """
    import os, signal, sys, time
    import jax.numpy as jnp
    from vit_efficient.checkpoint import Checkpoints
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
            np.testing.assert_array_equal(state["w"], np.float32(step) * np.arange(2**23, dtype=np.float32))
            assert step == 1 or delay != "0"
            checkpoints.save(3, {"w": jnp.zeros(2)})
        assert not list((tmp_path / delay).glob("*tmp*")) and not list((tmp_path / delay).glob("bad*"))


@pytest.mark.parametrize("where", ["due", "save", "close"])
def test_a_failed_save_is_an_error_soon(where, directory):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints, state = Checkpoints(directory), {"w": jax.random.normal(jax.random.key(0), (2**20,))}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))       # as a full disk: a write fails half way
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
    from vit_efficient.checkpoint import Checkpoints
    x = np.random.RandomState(0).randn(64, 32).astype(np.float32)
    def sharding(*axes):
        return NamedSharding(Mesh(np.array(jax.devices()).reshape(axes), ("a", "b")), PartitionSpec("a", "b"))
    with Checkpoints(directory, every_minutes=1e-9) as checkpoints:
        for step in 1, 2:
            checkpoints.save(step, {"w": jax.make_array_from_callback(x.shape, sharding(8, 2), lambda i: step * x[i])})
        read = checkpoints._arrays
        if rank == 1:           # one process alone cannot read its shards of the newest step
            checkpoints._arrays = lambda step, like: read(step, like) if step == 1 else (None, "a broken disk")
        step, state, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(2, 8))})
        for shard in state["w"].addressable_shards:
            np.testing.assert_array_equal(shard.data, x[shard.index])
        checkpoints.save(2, state)
        checkpoints.wait()
        print("restored", step, checkpoints.steps(), checkpoints.overdue())
"""


def test_two_processes_take_the_same_step(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
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
