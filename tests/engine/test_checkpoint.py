"""Saving and restoring; what happens to damaged checkpoints stands in test_checkpoint_damage.py."""
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from tests.engine.states import (
    LIKE,
    State,
    abstract,
    make_state,
    on_disk,
    same_bits,
    write_steps,
)
from vit_efficient.engine.checkpoint import FORMAT, Checkpoints, DamagedCheckpoint, read_weights
from vit_efficient.engine.manifest import compare, manifest, seal, unseal


def spread(tree, *axes: int):
    """The tree's arrays over a mesh of 8 devices, matrices split along both axes, or on one."""
    if not axes:
        return jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), tree)
    mesh = Mesh(np.array(jax.devices()).reshape(axes), ("data", "fsdp"))

    def put(x):
        spec = ("data", "fsdp") if x.ndim == 2 and x.size else ()
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return jax.tree.map(put, tree)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    """A directory with the steps 1 and 2; to be copied."""
    return write_steps(tmp_path_factory.mktemp("steps"))


@pytest.fixture
def directory(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


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
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, moved, like))


def test_parts_are_read_and_verified_without_the_rest(directory):
    state, like = make_state(2), {"params": LIKE.params, "collections": {}, "ema": LIKE.ema}
    expected = {"params": state.params, "collections": {}, "ema": state.ema}
    with Checkpoints(directory, read_only=True) as checkpoints:
        forge(directory, "masks/blocks_0/kernel")
        step, parts, _ = checkpoints.restore_parts(like)
        assert step == 2 and same_bits(parts, expected)
        with pytest.raises(ValueError, match="masks/blocks_0/kernel: missing"):
            checkpoints.restore_parts({"masks": {}})
        with pytest.raises(DamagedCheckpoint, match="1 of 20 leaves .*masks/blocks_0/kernel"):
            checkpoints.restore(LIKE, 2)
        forge(directory, "ema/params/head/kernel")
        assert checkpoints.restore_parts(like)[0] == 1


def test_weights_are_read_by_their_word(directory):
    for word, number in ("best", 1), ("latest", 2), ("2", 2):
        step, parts = read_weights(directory.parent, word, {"params": LIKE.params})
        assert step == number and same_bits(parts, {"params": make_state(number).params})
    for word in "newest", "3":
        with pytest.raises(ValueError, match=f"checkpoint {word}: .* holds steps 1, 2"):
            read_weights(directory.parent, word, {"params": LIKE.params})
    with pytest.raises(ValueError, match="holds no checkpoint"):
        read_weights(directory, "best", {"params": LIKE.params})


def forge(directory: Path, leaf: str) -> None:
    """Another fingerprint for one leaf of step 2, under a valid checksum."""
    path = directory / "2/manifest/metadata"
    record = unseal(path.read_text())
    record["leaves"][leaf]["fingerprint"] = 16 * "0"
    path.write_text(json.dumps(seal(record)))


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree),
                     donate_argnums=0)
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

    assert (due(1.0), due(1.1), due(0.0)) == ([10, 20, 30], [11, 22], [])
    assert due(0.5) == [5, 10, 15, 20, 25, 30]
    for minutes, expected in (0.0, False), (1e-9, True), (60.0, False):
        with Checkpoints(tmp_path, every_minutes=minutes) as checkpoints:
            assert checkpoints.overdue() is expected


def test_another_state_is_one_error_that_names_every_difference(directory):
    other = abstract({"blocks_0": {"kernel": jnp.ones((4, 4))}, "new": jnp.ones(2)})
    like = LIKE.replace(params=LIKE.params | other, seed=abstract(jnp.int32(0)))
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
