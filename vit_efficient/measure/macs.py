"""Multiply-adds of a traced function: of what runs, with its backward pass and what it recomputes.

(A model's `macs()` counts one image's forward pass as its paper does.)
"""
from collections.abc import Iterator
import math

from jax.extend.core import ClosedJaxpr, Jaxpr


def multiply_adds(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """Those of all matrix products and convolutions in `jaxpr`, over all devices together.

    A scan's body counts as often as it runs, a while loop's once (its length is not known), the
    branches of a condition in equal parts.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, inner = eqn.primitive.name, [multiply_adds(sub) for sub in _inside(eqn.params)]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            sides = eqn.invars[0].aval.shape
            total += eqn.outvars[0].aval.size * math.prod(sides[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(eqn)
        elif name == "cond":
            total += sum(inner) / len(inner)
        else:
            total += sum(inner) * (eqn.params["length"] if name == "scan" else 1)
    return total


def _convolution(eqn) -> float:
    """Every output takes a kernel's sides times its input channels; in the gradient of a strided
    one, all but one of `lhs_dilation` inputs are zeros put between."""
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel[axis] for axis in spec[1:])
    return eqn.outvars[0].aval.size * taps / math.prod(eqn.params["lhs_dilation"])


def _inside(params: dict) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for member in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(member, (ClosedJaxpr, Jaxpr)):
                yield member
