"""A small state with every kind of leaf, and a folder of its checkpoints."""
from pathlib import Path

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_efficient.engine.checkpoint import Checkpoints


class State(struct.PyTreeNode):
    step: jax.Array
    seed: jax.Array
    params: dict
    collections: dict
    opt_state: tuple
    ema: dict
    masks: dict


def make_state(number: int, width: int = 32) -> State:
    """What a state may hold: named tuples, empty nodes, None, bool, bfloat16, empty arrays."""
    rng = np.random.RandomState(number)
    params = {"blocks_0": {"kernel": jnp.float32(rng.randn(width, 16)),
                           "bias": jnp.float32(rng.randn(16))},
              "head": {"kernel": jnp.asarray(rng.randn(16, 8), jnp.bfloat16),
                       "none": jnp.zeros((0, 3))},
              "pool": {}}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(number, x.dtype), opt_state)
    mask = jnp.asarray(rng.rand(width, 16) > 0.5)
    return State(step=jnp.int32(number), seed=jnp.uint32(2**32 - 1), params=params, collections={},
                 opt_state=opt_state, ema={"params": params, "collections": {}},
                 masks={"blocks_0": {"kernel": mask, "bias": None}, "head": None})


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def same_bits(a, b) -> bool:
    def bits(tree):
        return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]
    return jax.tree.structure(a) == jax.tree.structure(b) and bits(a) == bits(b)


def on_disk(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None
            for path in sorted(directory.rglob("*"))}


def write_steps(directory: Path) -> Path:
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, make_state(1), {"top1": 0.5}, {"teacher": None})
        checkpoints.save(2, make_state(2))
    return directory


LIKE = abstract(make_state(0))
