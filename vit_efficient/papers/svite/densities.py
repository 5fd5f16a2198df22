"""How dense each layer of a sparse network is (SViTE, NeurIPS 2021, the authors' code).

Layers are named by their official names and given by the shapes of their weights, whose order of
axes does not matter.
"""
from math import prod
from typing import NamedTuple

Shapes = dict[str, tuple[int, ...]]


class Densities(NamedTuple):
    """The fraction of non-zeros of each layer; `epsilon` is what multiplies `sum(shape) /
    prod(shape)` of a layer that is not dense, None where densities do not depend on shapes."""
    of: dict[str, float]
    epsilon: float | None = None

    @property
    def dense(self) -> list[str]:
        """Layers without a zero, which no update changes."""
        return [name for name, density in self.of.items() if density >= 1]

    def overall(self, shapes: Shapes) -> float:
        """Expected non-zeros of all layers over their weights."""
        kept = sum(min(self.of[name], 1) * prod(shape) for name, shape in shapes.items())
        return kept / sum(map(prod, shapes.values()))


def maskable(shapes: Shapes) -> Shapes:
    """Those of a state_dict that masks cover: matrices and convolutions, no selector's."""
    return {name: shape for name, shape in shapes.items()
            if len(shape) in (2, 4) and "gumbel" not in name}


def uniform(shapes: Shapes, density: float) -> Densities:
    """Every layer at `density`, the first and the last too."""
    return Densities(dict.fromkeys(shapes, density))


def fixed_erk(shapes: Shapes, density: float) -> Densities:
    """Erdos-Renyi with kernel (RigL, ICML 2020): proportional to `r = sum(shape) / prod(shape)`,
    scaled so that the non-zeros of all layers together are `density`; a layer that would pass 1 is
    dense and the others share the rest."""
    size = {name: prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        budget = sum(size[name] * density for name in free)
        budget -= sum(size[name] * (1 - density) for name in full)
        epsilon = budget / sum(raw[name] * size[name] for name in free) if free else 0.0
        largest = max((raw[name] for name in free), default=0.0)
        if largest * epsilon <= 1:
            return Densities({name: 1.0 if name in full else epsilon * raw[name]
                              for name in shapes}, epsilon)
        full |= {name for name in free if raw[name] == largest}


def erdos_renyi(shapes: Shapes, density: float) -> Densities:
    """The older rule of SET: proportional to `sum(shape) / prod(shape)` and not cut, so that a
    density above 1 means a dense layer.

    Its factor is found by ever smaller steps up and down until the non-zeros are within 5 of
    `density`, and takes one more step then: official numbers are up to 1 % off.
    """
    axes = sum(map(sum, shapes.values()))
    target = density * sum(map(prod, shapes.values()))
    epsilon, step, done = 10.0, 0.5, False
    for _ in range(1000):
        done = abs(epsilon * axes - target) < 5
        epsilon *= 1 - step if epsilon * axes > target else 1 + step
        step *= 0.95
        if done:
            return Densities({name: epsilon * sum(shape) / prod(shape)
                              for name, shape in shapes.items()}, epsilon)
    raise ValueError(f"sparsity.density = {density}: the search of ER finds no factor, take "
                     f"fixed_ERK")


MODES = {"fixed_ERK": fixed_erk, "uniform": uniform, "ER": erdos_renyi}


def densities(mode: str, shapes: Shapes, density: float) -> Densities:
    """By the official name of the mode; ValueError for another one, which the official code takes
    and then trains a network of zeros."""
    if mode not in MODES:
        raise ValueError(f"sparsity.sparse_init = {mode}: must be one of {', '.join(MODES)}")
    if not 0 < density <= 1:
        raise ValueError(f"sparsity.density = {density}: must be above 0 and at most 1")
    return MODES[mode](shapes, density)
