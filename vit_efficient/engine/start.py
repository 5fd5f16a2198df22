"""What a run starts from: its own newest checkpoint, given weights (`init_from`), or random ones.

Training (`first_state`), evaluation (`weights`) and export (`chosen`) ask here, so that they mean
the same weights.
"""
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax
from ml_collections import ConfigDict

from vit_efficient.engine import pretrained, state as states
from vit_efficient.engine.checkpoint import Checkpoints, read_weights
from vit_efficient.engine.run import Run
from vit_efficient.seams.objective import of_model


def first_state(run: Run, checkpoints: Checkpoints,
                given: dict | None = None) -> tuple[int, states.State]:
    """(steps done, state) that a run starts from: its newest whole checkpoint, else the variables
    that are `given`, else random ones.

    Raises ValueError where the checkpoint is of another model or was taught by another teacher.
    """
    found = checkpoints.restore(run.abstract_state)
    if not found:
        return 0, run.fresh_state() if given is None else _state_around(run, given)
    step, state, record = found
    if record["extra"] != run.fingerprint():
        source = next(key for key in ("init_from", "stored", "workdir")
                      if run.config.teacher[key] or key == "workdir")
        raise ValueError(f"teacher.{source} = {run.config.teacher[source]}: it is not the teacher "
                         f"that step {step} in {checkpoints.directory} was taught by")
    return step, state


def given(run: Run, workdir: Path) -> dict | None:
    """The variables that `init_from` gives a run without a checkpoint of its own, else None;
    nothing is written."""
    if not is_given(run.config, workdir):
        return None
    return pretrained.given_weights(run.model, run.config.init_from, run.config.seed,
                                    run.config.model, **run.config.init)


def weights(run: Run, workdir: Path, name: str) -> tuple[int, dict]:
    """(step, {"params", "collections", "ema"}) of the checkpoint `name` ("best", "latest" or a
    step) of `workdir`; where it has none, of `init_from` as step 0.

    Raises ValueError where there are no such weights or they are of another model.
    """
    like = states.weight_fields(run.abstract_state)
    variables = given(run, workdir)
    if variables is None:
        return read_weights(workdir, name, like)
    fields = states.split(variables, ema=False)
    places = {"params": of_model(like["params"]), "collections": like["collections"]}
    return 0, {**jax.tree.map(lambda leaf, x: jax.device_put(leaf, x.sharding),
                              {part: fields[part] for part in places}, places), "ema": {}}


def chosen(run: Run | None, workdir: Path, weights: str | None,
           kind: str | None) -> tuple[nn.Module, dict, dict[str, Any]]:
    """(model, its variables, what to say of them) of what an export writes: a checkpoint of
    `workdir`, or with a `run`, where its weights are given (`is_given`), those."""
    if run is None:
        return pretrained.stored(workdir, weights, kind)
    about = pretrained.describe(run.model, run.config) | {"step": 0, "kind": "raw"}
    return run.model, given(run, workdir), about


def is_given(config: ConfigDict, workdir: Path) -> bool:
    """True where a run starts from `init_from`: it names weights, and there is no checkpoint."""
    return bool(config.init_from) and not steps(workdir)


def steps(workdir: Path) -> list[int]:
    """Steps of which the run in `workdir` has a checkpoint."""
    with Checkpoints(Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def _state_around(run: Run, variables: dict) -> states.State:
    """The state before the first step, with these weights and the config's masks and EMA."""
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state)
    return jax.jit(run.state_around, out_shardings=places)(variables)
