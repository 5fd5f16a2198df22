"""The sparsity seam: masks beside their weights in the train state, never inside a module.

A paper's `sparsity.py` holds a table `VARIANTS` of makers by name,

    make(length: Length, model: Model, *, density: Fraction = 0.5, ...) -> Sparsity

whose keyword-only arguments are the keys of the config group `sparsity`. An example, whole: half of
every matrix, drawn once.

    def half(length, model, *, density: Fraction = 0.5):
        def init(params, key):
            return jax.tree.map(lambda w: jax.random.uniform(key, w.shape) < density
                                if w.ndim == 2 else None, params)
        return Sparsity(init)

    VARIANTS = {"half": half}

`engine/step.py` applies masks after the optimiser's update. Where `moves_at(step)` says so, that
step is compiled as a phase of its own and ends with `update`: so masks move under any paper's
phases, and other steps pay nothing for them.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_efficient.seams.phases import Length


def masked(params: dict, masks: dict) -> dict:
    """`params` with zeros where a mask is False; `masks` is a tree as `params` with None where
    nothing is masked, or {} for none at all."""
    if not masks:
        return params
    zeroed = lambda mask, weight: weight if mask is None else jnp.where(mask, weight, 0)
    return jax.tree.map(zeroed, masks, params, is_leaf=lambda leaf: leaf is None)


def never(step: int) -> bool:
    """The `moves_at` of masks that stay as they were drawn."""
    return False


def unchanged(params: dict, masks: dict, gradients: dict, signals: dict, step: jax.Array,
              key: jax.Array) -> tuple[dict, dict, dict]:
    """The `update` of masks that stay as they were drawn."""
    return params, masks, {}


class Sparsity(NamedTuple):
    """`init(params, key) -> masks`: bool arrays beside their weights, as `masked` reads them;
    `apply(params, masks) -> params`, after every update of the weights;
    `update(params, masks, gradients, signals, step, key) -> (params, masks, metrics)` at the end of
    a step at which masks move: it may also draw anew what it grows; `signals` are the objective's
    (`Aux.signals`), `step` is int32 [], counted from 1 here, metrics are `(sum, count)`;
    `moves_at(step) -> bool` for a Python int counted from 0: whether that step ends with `update`.
    """
    init: Callable
    apply: Callable = masked
    update: Callable = unchanged
    moves_at: Callable[[int], bool] = never


def dense(length: Length, model) -> Sparsity:
    """Every weight trains."""
    return Sparsity(init=lambda params, key: {})


VARIANTS = {"dense": dense}
