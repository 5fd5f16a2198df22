"""The rule that places arrays: what is split, how evenly, and what is refused."""
from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.engine import sharding


@given(st.lists(st.integers(1, 64), max_size=4).map(tuple), st.sampled_from([1, 2, 4, 8]))
def test_a_split_axis_is_the_largest_that_divides(shape, fsdp):
    mesh = sharding.make_mesh(fsdp=fsdp)
    placed = tuple(sharding.spec(mesh, shape))
    split = [n for n, axis in zip(shape, placed) if axis == "fsdp"]
    able = [n for n in shape if n % fsdp == 0]
    if fsdp == 1 or not able or np.prod(shape) < sharding.SMALL:
        assert not split
    else:
        assert split == [max(able)]


def test_mesh_takes_what_is_left_and_refuses_the_rest():
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2}
    with pytest.raises(ValueError, match="mesh.fsdp = 3: .* 8 devices"):
        sharding.make_mesh(fsdp=3)
    with pytest.raises(ValueError, match="mesh.data = 3"):
        sharding.make_mesh(data=3)


def test_batches_split_evenly_or_are_refused():
    mesh = sharding.make_mesh()
    sharding.check_batch(mesh, "batch_size", 32, accumulate=2)
    words = "batch_size = 24: must be a multiple of 16 .*accumulate = 2.* nearest is 32"
    with pytest.raises(ValueError, match=words):
        sharding.check_batch(mesh, "batch_size", 24, accumulate=2)
    array = jax.device_put(jnp.arange(16), sharding.batch_sharding(mesh))
    shards = [shard.data.tolist() for shard in array.addressable_shards]
    assert shards == [[i, i + 1] for i in range(0, 16, 2)]
