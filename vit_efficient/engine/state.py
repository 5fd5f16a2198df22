"""The train state: all that decides the future of a run; the only file that names its fields.

`create` makes it, `engine/step.py` replaces it, `engine/checkpoint.py` stores it whole; evaluation
and export read it by `weight_fields` and `weights`, so that they need no optimiser.
"""
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
    """A fresh state around a model's `variables`; jittable, so that large ones are born sharded."""
    fields = split(variables, ema)
    seed, zero = jnp.uint32(seed), jnp.int32(0)
    masks = sparsity.init(fields["params"], jax.random.fold_in(jax.random.key(seed), 0x5EED))
    params = sparsity.apply(fields["params"], masks)
    if ema:
        fields["ema"]["params"] = params
    return State(step=zero, seed=seed, **fields | {"params": params}, masks=masks,
                 opt_state=optimizer.init(params), skipped=zero, streak=zero)


def split(variables: dict, ema: bool) -> dict:
    """A model's variables as the fields of a state that hold weights: `params`, `collections` (all
    others) and `ema`, {} or a copy of both."""
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    raw = {"params": variables["params"], "collections": collections}
    return raw | {"ema": dict(raw) if ema else {}}


def weight_fields(state: State) -> dict:
    """What evaluation and export read of a state: its `params`, `collections` and `ema`."""
    return {"params": state.params, "collections": state.collections, "ema": state.ema}


def weights(fields: dict, kind: str | None = None) -> dict:
    """The "raw" or "ema" weights of such fields as {"params", "collections"}; by default the
    averaged ones where there are any."""
    if kind == "ema" or kind is None and fields["ema"]:
        return fields["ema"]
    return {name: fields[name] for name in ("params", "collections")}
