"""The train state: all that decides the future of a run; the only file that names its fields."""
from flax import struct
import jax
import jax.numpy as jnp


class State(struct.PyTreeNode):
    """One pytree of arrays; it is donated to every step and stored whole by every checkpoint.

    `step` counts optimiser steps that were tried, `skipped` those whose update was dropped because
    a number in it was not finite, `streak` how many of them came in a row up to now (all int32 []).
    `seed` uint32 [] is what a step's randomness is folded from. `collections` is what a pass
    changes without a gradient (batch statistics) and what an official file holds though nothing
    trains it (`constants`). `ema` is empty or a `Weights`.
    """
    step: jax.Array
    seed: jax.Array
    params: dict
    collections: dict
    opt_state: tuple
    ema: dict
    masks: dict
    skipped: jax.Array
    streak: jax.Array

    def key(self) -> jax.Array:
        """The PRNG key of the next step: a function of the seed and the step number alone."""
        return jax.random.fold_in(jax.random.key(self.seed), self.step)


def create(seed: int, variables: dict, optimizer, sparsity, ema: bool) -> State:
    """A fresh state around a model's `variables`; jittable: large states are born sharded."""
    params, collections = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    seed = jnp.uint32(seed)
    masks = sparsity.init(params, jax.random.fold_in(jax.random.key(seed), 0x5EED))
    params = sparsity.apply(params, masks)
    zero = jnp.int32(0)
    return State(
        step=zero, seed=seed, params=params, collections=collections,
        opt_state=optimizer.init(params), masks=masks, skipped=zero, streak=zero,
        ema={"params": params, "collections": collections} if ema else {})


WEIGHTS = ("params", "collections", "ema")    # what evaluation and export read of a stored state


def weights(state, kind: str) -> dict:
    """The `raw` or `ema` weights of a state or its dict, as `{"params", "collections"}`."""
    fields = state if isinstance(state, dict) else {name: getattr(state, name) for name in WEIGHTS}
    if kind == "ema":
        return fields["ema"]
    return {name: fields[name] for name in ("params", "collections")}
