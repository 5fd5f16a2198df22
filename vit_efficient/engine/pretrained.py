"""Weights that a model is given: an official file, an export, a run or one of its steps."""
from collections.abc import Mapping
import logging
from pathlib import Path
from typing import Any, Literal

from flax import linen as nn
import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient.engine import sharding, state as states
from vit_efficient.engine.checkpoint import Checkpoints, read_weights, stored_shapes
from vit_efficient.settings.store import load_stored
from vit_efficient.weights import files, interop
from vit_efficient.weights.entry import Entry
from vit_efficient.zoo import create_model

log = logging.getLogger(__name__)
# Options of a model that change no logit.
FREE = ("name", "drop_path", "scan", "remat")


def given_weights(model: nn.Module, source: str, seed: int = 0,
                  options: Mapping[str, Any] = {}, *,
                  kind: Literal["raw", "ema"] | None = None,
                  adapt: tuple[Literal["classes", "heads", "image_size", "parts"],
                               ...] = ()) -> dict:
    """The variables that a file, a workdir or one of its steps holds for `model`, numpy arrays.

    Args:
      source: `config.init_from`.
      seed: of heads that are made anew.
      options: the config's `model`, for a warning where an export had others.
      kind: raw or averaged weights; `None` takes those that the authors evaluate, and of a workdir
        the averaged ones where it has them.
      adapt: what may differ from the model: "classes" makes the heads anew (or leaves them out)
        where their number is another, "heads" makes them anew in any case, "image_size" resizes the
        position tables, "parts" makes anew what an option brings and the weights lack, as a token
        selector.
    Raises:
      ValueError: they cannot be read or do not fit, with every reason.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            state_dict = interop.to_torch(*stored(path, kind=kind)[:2])
        else:
            tree = files.read(path)
            state_dict = files.state_dict(tree, kind)
            _compare(tree, options, path)
        return interop.from_torch(model, state_dict, adapt=adapt, seed=seed)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"init_from = {source}: {error}") from error


def stored(path: Path, name: str | None = None,
           kind: str | None = None) -> tuple[nn.Module, dict, dict[str, Any]]:
    """(model, its variables, what to say of them) of a run, wherever its data are.

    Args:
      path: a workdir, or DIR/checkpoints/STEP.
      name: "best", "latest" or a step; by default the best, or the latest where none was scored.
      kind: "raw" or "ema", by default the averaged weights where there are any.
    """
    workdir = Path(path)
    if workdir.parent.name == "checkpoints" and workdir.name.isdecimal():
        workdir, name = workdir.parents[1], workdir.name
    config = load_stored(workdir)
    if name is None:
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            name = "latest" if checkpoints.best_step() is None else "best"
    like = stored_shapes(workdir, ("params", "collections", "ema"),
                         sharding.replicated(sharding.make_mesh()))
    step, fields = read_weights(workdir, name, like)
    if kind == "ema" and not fields["ema"]:
        raise ValueError(f"kind = ema: {workdir} has no averaged weights (step.ema_decay = 0)")
    chosen = jax.tree.map(np.asarray, states.weights(fields, kind))
    variables = {"params": chosen["params"], **chosen.get("collections", {})}
    model = _model(config, variables)
    kind = kind or ("ema" if fields["ema"] else "raw")
    return model, variables, describe(model, config) | {"step": step, "kind": kind}


def beside(path: Path) -> dict[str, Any]:
    """What an official file holds beside the weights, as the thresholds of a DVT: plain values by
    their keys, arrays as numpy; {} of a `.safetensors`. Raises ValueError where it cannot be read.
    """
    skipped = {*files.RAW, *files.AVERAGED, files.OURS}
    return {key: np.asarray(value) if isinstance(value, Entry) else value
            for key, value in files.read(path).items() if key not in skipped}


def describe(model: nn.Module, config: ConfigDict) -> dict[str, Any]:
    """What must be known to build the model again, JSON values."""
    return {"model": {**config.model, "num_classes": model.num_classes,
                      "image_size": model.image_size}}


def _model(config: ConfigDict, variables: dict) -> nn.Module:
    """The model of a stored config, for as many classes as its weights have."""
    make = lambda count: create_model(num_classes=count, image_size=config.data.image_size,
                                      dtype=config.dtype, **config.model)
    state_dict, one = interop.to_torch(make(1), variables), interop.layout(make(1))
    counts = {array.shape[0] for name, array in state_dict.items()
              if name in one and array.shape != one[name].shape}
    return make(max(counts, default=1))


def _compare(tree: Mapping[str, Any], options: Mapping[str, Any], path: Path) -> None:
    """Warns where a file says that its model had other options, which shapes may not show: an
    export of ours, or the arguments of the authors' trainer (of theirs the numbers)."""
    args, about = _dict(tree.get("args")), _dict(_dict(tree.get(files.OURS)).get("model"))
    number = lambda value: type(value) in (int, float)
    there = {key: value for key, value in args.items()
             if number(value) and number(options.get(key))} | about
    for key, value in options.items():
        if key not in FREE and key in there and _plain(there[key]) != _plain(value):
            log.warning("%s was made with model.%s = %s, this run has %s", path, key, there[key],
                        value)


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(value: Any) -> Any:
    return [*map(_plain, value)] if isinstance(value, tuple | list) else value
