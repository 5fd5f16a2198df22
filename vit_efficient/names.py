"""Path of an array in a Flax tree <-> its official name in the authors' state_dict, and the layout
of the array.

One rule for every model: `blocks_3/attn/qkv/kernel` is `blocks.3.attn.qkv.weight`, transposed.
"""
import re

import numpy as np


def official(path: tuple[str, ...]) -> str:
    """`("layers_0", "mlps_0_1", "fc1", "kernel")` -> `layers.0.mlps.0.1.fc1.weight`."""
    *modules, last = path
    names = [re.sub(r"_(?=\d)", ".", name) for name in modules]
    return ".".join([*names, "weight" if last in ("kernel", "scale") else last])


def rank(path: tuple[str, ...], order: tuple[str, ...]) -> tuple:
    """Sort key of the official file: a module's own parameters first, then its submodules as
    `order` declares them, lists by number."""
    last = ("kernel", "scale", "bias").index(path[-1]) if path[-1] in ("kernel", "scale", "bias") \
        else order.index(path[-1])
    modules = ((1, order.index(re.sub(r"_\d.*", "", name)), *map(int, re.findall(r"_(\d+)", name)))
               for name in path[:-1])
    return *modules, (0, last)


def to_official(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The array in torch's layout: Linear [in, out] -> [out, in], convolution HWIO -> OIHW, others
    as they are."""
    if path[-1] != "kernel":
        return array
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def from_official(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The inverse of `to_official`."""
    if path[-1] != "kernel":
        return array
    return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
