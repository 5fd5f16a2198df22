"""Stacks of equal blocks: stochastic depth, rematerialisation, a scan in place of a loop.

Every model runs its blocks by `run_blocks`; a block drops its branches by `drop_path`, at one of
the `linear_rates`.
"""
from collections.abc import Callable
from functools import partial
from typing import Any

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


@jax.custom_vjp
def summed_once(x: jax.Array) -> jax.Array:
    """`x`, a residual stream, whose gradient (finite) a CPU computes once.

    It is a sum over all later blocks, which XLA on a CPU would compute again for each of its uses
    in each block: a fifth of the time of an unrolled DeiT-S, batch 16. A division is not repeated,
    and a barrier would be dropped.
    """
    return x


def _summed_once_backward(_: None, change: jax.Array) -> tuple[jax.Array]:
    divided = lambda change: change / (1 + 0 * change)
    return (jax.lax.platform_dependent(change, cpu=divided, default=lambda change: change),)


summed_once.defvjp(lambda x: (x, None), _summed_once_backward)


def run_blocks(parent: nn.Module, block_type: type[nn.Module], fields: dict, x: Any,
               rates: list[float], train: bool, *, shared: Any = None, own: Any = None,
               scan: bool = False, remat: bool = False) -> Any:
    """Runs `parent`'s `blocks_0` ..., one a rate: `block_type(**fields)(x, rate, train) -> x`.

    `x` is an array or a tree of float arrays. Each block's parameters are stored under its own
    name. `scan` stacks them inside the step and compiles one block (faster to compile; a TPU and a
    CPU prefer the unrolled loop); `remat` computes a block again in the backward pass instead of
    keeping its activations. With `shared`, a tree of arrays, block l is called
    `block(x, rate, train, shared, own[l])` and returns `(x, output)`; the leaves of `own` are
    [L, ...]. The result is then `(x, outputs)`, with leaves [L, ...] too.
    """
    def call(block: Callable, x: Any, rate: float | jax.Array, mine: Any) -> tuple[Any, Any]:
        """`(x, output)` of one block; the output is None without `shared`."""
        if shared is None:
            return block(x, rate, train), None
        return block(x, rate, train, shared, mine)

    # Initialising needs each block by its name, and a scan of one would only cost a stack.
    if scan and len(rates) > 1 and not parent.is_initializing():
        x, outputs = _scanned(parent, block_type(**fields, parent=None), call, x, rates, own, train,
                              remat)
    else:
        made = nn.remat(block_type, static_argnums=(2, 3)) if remat else block_type
        x, outputs = _unrolled(partial(made, **fields), call, x, rates, own)
    return x if shared is None else (x, outputs)


def _unrolled(make: Callable, call: Callable, x: Any, rates: list[float],
              own: Any) -> tuple[Any, Any]:
    """A loop over blocks that are made by name, each with its place in the program."""
    outputs = []
    for i, (rate, mine) in enumerate(zip(rates, _unstack(own, len(rates)))):
        x, output = call(make(name=f"blocks_{i}"), jax.tree.map(summed_once, x), rate, mine)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _scanned(parent: nn.Module, block: nn.Module, call: Callable, x: Any, rates: list[float],
             own: Any, train: bool, remat: bool) -> tuple[Any, Any]:
    """A scan over the stacked weights of `parent`'s blocks, with the one program of `block`."""
    weights = [parent.variables["params"][f"blocks_{i}"] for i in range(len(rates))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    dropping = any(rates)
    # Blocks may drop units at a drop-path rate of zero as well.
    random = train and (dropping or parent.has_rng("dropout"))
    keys = jax.random.split(parent.make_rng("dropout"), len(rates)) if random else None

    def body(x, inputs):
        weights, rate, key, mine = inputs
        rngs = None if key is None else {"dropout": key}
        apply = partial(block.apply, {"params": weights}, rngs=rngs)
        return call(apply, x, rate if dropping else 0.0, mine)

    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    return jax.lax.scan(body, x, (stacked, jnp.array(rates), keys, own))


def _unstack(tree: Any, length: int) -> list:
    """A tree with leaves [length, ...] as that many trees. The gradient of one split is one
    concatenation; that of `length` slices would be as many padded sums."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[part[0] for part in jax.lax.split(leaf, [1] * length)] for leaf in leaves]
    return [structure.unflatten(own) for own in zip(*parts)] if leaves else [tree] * length
