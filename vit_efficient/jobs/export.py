"""The job `export`: writes a run's weights as the authors' file.

    python -m vit_efficient.main --workdir=runs/asvit-digits --job=export --out=asvit.pth

The file loads into the authors' code and, by `init_from`, into any run of this package.
"""
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from vit_efficient.engine import start as starts
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.exports import write_export
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
    workdir = Path(workdir)
    run = assemble(config) if starts.is_given(config, workdir) else None
    model, variables, about = starts.chosen(run, workdir, weights, kind)
    write_export(path, model, variables, about)
    return about
