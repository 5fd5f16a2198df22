"""The sparsity seam: masks beside their weights in the train state, never inside a module."""
from collections.abc import Callable
from typing import NamedTuple


class Sparsity(NamedTuple):
    """`init(params, key) -> masks` (bool, `None` where nothing is masked),
    `apply(params, masks) -> params`, and for the steps of a topology phase
    `update(params, masks, gradients, signals, step, key) -> masks`."""
    init: Callable
    apply: Callable
    update: Callable


def dense() -> Sparsity:
    """Every weight trains."""
    return Sparsity(lambda params, key: {}, lambda params, masks: params,
                    lambda params, masks, *_: masks)


VARIANTS = {"dense": dense}
