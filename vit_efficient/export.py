"""Writes a run's weights as the authors' file."""
from pathlib import Path
from typing import Any, Literal

from flax import linen as nn
import jax
from ml_collections import ConfigDict

from vit_efficient import interop, pretrained, start as starts
from vit_efficient.run import assemble
from vit_efficient.weights import files


def export(config: ConfigDict, workdir: Path, *, out: str, weights: str | None = None,
           kind: Literal["raw", "ema"] | None = None) -> dict[str, Any]:
    """Writes a checkpoint of `workdir` as an official file; where it has none, the weights of
    `init_from`.

    Args:
      out: FILE.pth or FILE.safetensors, a new file.
      weights: "best", "latest" or a step; by default the best, or the latest if none was scored.
      kind: raw or averaged weights; by default the averaged ones where there are any.
    Returns:
      What the file says of its model. Raises ValueError where there are no such weights.
    """
    path = Path(out).expanduser()
    files.check_new(path)
    model, variables, about = chosen(config, Path(workdir), weights, kind)
    state_dict = interop.to_torch(model, variables)
    if jax.process_index() == 0:
        extras = model.extras() if hasattr(model, "extras") else {}
        files.write(path, state_dict, container=getattr(model, "container", "model"), about=about,
                    extras=extras)
        options = ", ".join(f"{key} = {value}" for key, value in about["model"].items())
        print(f"{path}: {len(state_dict)} entries, {about['kind']} weights of step "
              f"{about['step']}\n{options}")
    return about


def chosen(config: ConfigDict, workdir: Path, weights: str | None,
           kind: str | None) -> tuple[nn.Module, dict, dict[str, Any]]:
    """(model, its variables, what to say of them) of what `export` writes."""
    if config.init_from and not starts.steps(workdir):
        run = assemble(config)
        about = pretrained.describe(run.model, config) | {"step": 0, "kind": "raw"}
        return run.model, starts.given(run, workdir), about
    return pretrained.stored(workdir, weights, kind)
