"""Stacks of equal blocks: stochastic depth, rematerialisation, a scan in place of a loop."""
from flax import linen as nn
import jax
import jax.numpy as jnp


def drop_path(module: nn.Module, branch: jax.Array, rate: jax.Array | float,
              train: bool) -> jax.Array:
    """Stochastic depth: drops a residual branch [B, ...] whole for a sample with probability
    `rate`, and divides the kept ones by `1 - rate`. The identity in evaluation and at rate 0."""
    if not train or isinstance(rate, float) and rate == 0:
        return branch
    keep = 1 - rate
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(module.make_rng("dropout"), keep, shape)
    return jnp.where(kept, branch / jnp.asarray(keep, branch.dtype), jnp.zeros((), branch.dtype))


def linear_rates(last: float, depth: int) -> list[float]:
    """The drop-path rates of a model's blocks: linear from 0 in the first to `last` in the last."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def run_blocks(parent: nn.Module, block_type: type[nn.Module], fields: dict, x: jax.Array,
               rates: list[float], train: bool, *, scan: bool = False,
               remat: bool = False) -> jax.Array:
    """Runs `parent`'s `blocks_0` ..., one a rate: `block_type(**fields)(x, rate, train) -> x`.

    Each block's parameters are stored under its own name. `scan` stacks them inside the step and
    compiles one block (faster to compile, and faster on a CPU; a TPU prefers the unrolled loop);
    `remat` computes a block again in the backward pass instead of keeping its activations.
    """
    names = [f"blocks_{i}" for i in range(len(rates))]
    if parent.is_initializing() or not scan or len(names) == 1:
        made = nn.remat(block_type, static_argnums=(2, 3)) if remat else block_type
        for name, rate in zip(names, rates):
            x = made(**fields, name=name)(x, rate, train)
        return x
    weights = [parent.variables["params"][name] for name in names]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    block, drops = block_type(**fields, parent=None), train and any(rates)
    keys = jax.random.split(parent.make_rng("dropout"), len(names)) if drops else None

    def body(x, inputs):
        weights, rate, key = inputs
        if key is None:
            return block.apply({"params": weights}, x, 0.0, False), None
        return block.apply({"params": weights}, x, rate, True, rngs={"dropout": key}), None

    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    return jax.lax.scan(body, x, (stacked, jnp.array(rates), keys))[0]
