"""Masks of sparse weights and how the official trainer's checkpoints name them (SViTE,
NeurIPS 2021, the authors' code).

Masks are bool and stand under their weights' official names, in torch's layout.
"""
from collections.abc import Mapping
import re

import jax
import numpy as np

from vit_efficient.papers.svite.densities import Shapes, maskable

Masks = dict[str, np.ndarray]


def drawn(uniform: jax.Array | np.ndarray, density: float) -> jax.Array | np.ndarray:
    """The Bernoulli mask of a layer from numbers in [0, 1): as many non-zeros as happens."""
    return uniform < np.float32(density)


def apply(state_dict: dict[str, np.ndarray], masks: Masks) -> dict[str, np.ndarray]:
    """The weights with zeros where their mask is False, all others as they are."""
    return {name: array * masks[name] if name in masks else array
            for name, array in state_dict.items()}


def decode(checkpoint: Mapping, state_dict: Mapping, *, fired: bool = False) -> Masks:
    """The masks of an official `checkpoint.pth`: of `mask`, or of `other_mask` and `atten_mask`;
    with `fired` those that were active at any time.

    `state_dict` has the weights that they belong to. Raises ValueError with every mask that names
    no weight, has another shape, holds other values than 0 and 1 or is False at a non-zero weight.
    """
    groups = ("fired_mask",) if fired else ("mask", "other_mask", "atten_mask")
    masks, problems = {}, []
    for key, array in (item for group in groups for item in checkpoint[group].items()):
        name = re.sub(r"_(\d+|mask)$", "", key.removeprefix("module."))
        array, weight = np.asarray(array), np.asarray(state_dict.get(name))
        if name not in state_dict:
            problems.append(f"{key}: there is no weight {name}")
        elif array.shape != weight.shape:
            problems.append(f"{key}: shape {array.shape}, the weight has {weight.shape}")
        elif not np.isin(array, (0, 1)).all():
            problems.append(f"{key}: has other values than 0 and 1")
        elif name in masks:
            problems.append(f"{key}: a second mask of {name}")
        elif weight[array == 0].any():
            problems.append(f"{key}: {np.count_nonzero(weight[array == 0])} weights "
                            f"under a mask of 0 are not 0")
        else:
            masks[name] = array.astype(bool)
    if problems:
        raise ValueError("the masks do not fit the weights:\n  " + "\n  ".join(problems))
    return masks


def official_keys(shapes: Shapes, *, structured: bool,
                  distributed: bool = True) -> dict[str, dict[str, str]]:
    """The keys of the three dictionaries of masks in a checkpoint, weight -> key, for a model with
    these entries in this order. A distributed run puts `module.` before."""
    prefix = "module." if distributed else ""
    if not structured:
        masked = maskable(shapes)
        numbered = {name: f"{prefix}{name}_{i}" for i, name in enumerate(shapes) if name in masked}
        return {"mask": numbered, "other_mask": {}, "atten_mask": {}}
    ends = {"other_mask": ("mlp.fc1.weight", "mlp.fc2.weight"), "atten_mask": "attn.qkv.weight"}
    return {"mask": {}} | {
        group: {name: f"{prefix}{name}_mask" for name in shapes if name.endswith(end)}
        for group, end in ends.items()}


def active_heads(mask: np.ndarray, head_width: int) -> list[int]:
    """Heads that the mask [3 A, D] of a `qkv.weight` leaves, ascending. The official files do not
    store them.

    Raises ValueError where a head is masked in part.
    """
    parts = mask.reshape(3, -1, head_width * mask.shape[1])
    whole, some = parts.all((0, 2)), parts.any((0, 2))
    if (whole != some).any():
        raise ValueError(f"the mask of qkv covers a part of the heads "
                         f"{np.flatnonzero(whole != some)}")
    return [int(h) for h in np.flatnonzero(whole)]
