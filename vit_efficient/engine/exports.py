"""Writes weights as the authors' file: the end of every export, the engine's and the papers'."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax

from vit_efficient.weights import files, interop


def write_export(path: Path, model: nn.Module, variables: dict, about: Mapping[str, Any], *,
                 extras: Mapping[str, Any] = {}, note: str = "") -> None:
    """Writes `variables` as an official file of `model` and says so, on process 0 alone.

    Args:
      path: FILE.pth or FILE.safetensors, a new file (`files.check_new`).
      about: what the file says of its model: "model", "kind" and "step" at least.
      extras: what else stands beside the weights in a `.pth`, over the model's own `extras()`.
      note: lines to print below.
    """
    state_dict = interop.to_torch(model, variables)
    if jax.process_index():
        return
    files.write(path, state_dict, container=model.container, about=about,
                extras=model.extras() | dict(extras))
    options = ", ".join(f"{key} = {value}" for key, value in about["model"].items())
    print(f"{path}: {len(state_dict)} entries, {about['kind']} weights of step {about['step']}\n"
          f"{note or options}")
