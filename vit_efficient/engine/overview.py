"""A run in words, before anything is compiled: size by part, cost by phase, length, devices.

The log of a training run begins with `overview`; `jobs/summary` prints `table`.
"""
from flax import linen as nn
import jax
import numpy as np

from vit_efficient.engine.run import Run
from vit_efficient.seams.model import shapes


def parameters(tree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def overview(run: Run) -> str:
    """Lines for the log: parameters part by part, multiply-adds of a step of each phase and
    relative to the last, length, devices."""
    params = run.abstract_state.params
    parts = ", ".join(f"{name} {parameters(part):,}" for name, part in params.items())
    return (f"{run.config.model.name}: {parameters(params):,} parameters ({parts})\n"
            f"{training(run)}\n"
            f"{run.length.total} steps of {run.length.batch_size} images on {run.mesh.size} x "
            f"{jax.devices()[0].device_kind}, mesh {dict(run.mesh.shape)}")


def training(run: Run) -> str:
    """A line: what the forward passes of a training step cost for an image, phase by phase."""
    macs = [run.macs(phase) for phase in run.phases.distinct()]
    shares = ", ".join(f"{m / 1e6:,.1f} M ({100 * m / macs[-1]:.1f} %)" for m in macs)
    return f"multiply-adds of an image in training, by phase: {shares}"


def table(model: nn.Module) -> dict[str, dict[str, int]]:
    """`{part: {"parameters", "trained", "macs"}}` of one image, the last part `total`, from shapes
    and closed formulas alone.

    Parameters are those that the papers count: what no training moves (collection `constants`)
    too, statistics of norms not.
    """
    variables, macs = shapes(model), model.macs()
    trained, fixed = variables["params"], variables.get("constants", {})
    counted = {"parameters": (trained, fixed), "trained": (trained,)}
    rows = {part: {key: sum(parameters(tree.get(part, {})) for tree in trees)
                   for key, trees in counted.items()} | {"macs": macs.get(part, 0)}
            for part in dict.fromkeys([*trained, *fixed, *macs])}
    return rows | {"total": {key: sum(row[key] for row in rows.values())
                             for key in (*counted, "macs")}}
