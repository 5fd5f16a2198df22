"""Path of an array in a Flax tree <-> its official name in the authors' state_dict, the layout of
the array, and its place in the file.

One rule for every model: `blocks_3/attn/qkv/kernel` is `blocks.3.attn.qkv.weight`, transposed.
"""
import re

import numpy as np

RENAMED = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
OWN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def official(path: tuple[str, ...]) -> str:
    """`("layers_0", "mlps_0_1", "fc1", "kernel")` -> `layers.0.mlps.0.1.fc1.weight`."""
    *modules, last = path
    names = [re.sub(r"_(?=\d)", ".", name) for name in modules]
    return ".".join([*names, RENAMED.get(last, last)])


def to_official(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The array in torch's layout: Linear [in, out] -> [out, in], convolution HWIO -> OIHW, a map
    NHWC -> NCHW, a counter int64, others as they are."""
    if path[-1] == "num_batches_tracked":
        return np.rint(array).astype(np.int64)
    if path[-1] != "kernel":
        return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
    return array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)


def from_official(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """The inverse of `to_official`."""
    if path[-1] == "num_batches_tracked":
        return array.astype(np.float32)
    if path[-1] != "kernel":
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)


def sort_key(name: str, order: tuple[str, ...]) -> tuple:
    """Where an official name stands in a file: modules in the `order` of their declaration, lists
    by number, a module's own arrays before its submodules, weight before bias and statistics."""
    *modules, last = name.split(".")
    unknown = {part for part in (*modules, last) if not part.isdigit()} - {*order, *OWN}
    assert not unknown, f"{name}: the model's `order` lacks {', '.join(sorted(unknown))}"
    places = [(1, int(part) if part.isdigit() else order.index(part)) for part in modules]
    return (*places, (0, OWN.index(last) if last in OWN else order.index(last)))
