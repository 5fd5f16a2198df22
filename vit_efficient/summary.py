"""Parameters and multiply-adds of a model, part by part, before anything is compiled."""
from pathlib import Path

from clu import parameter_overview
import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient.run import Run, assemble


def parameters(tree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def overview(run: Run) -> str:
    """Lines for the log: parameters part by part, multiply-adds of each phase and relative to the
    last, length, devices."""
    params = run.abstract_state().params
    parts = ", ".join(f"{name} {parameters(part):,}" for name, part in params.items())
    macs = [sum(run.model.macs(**dict(phase.model)).values()) for phase in run.phases.distinct()]
    shares = ", ".join(f"{m / 1e6:,.1f} M ({100 * m / macs[-1]:.1f} %)" for m in macs)
    return (f"{run.config.model.name}: {parameters(params):,} parameters ({parts})\n"
            f"multiply-adds of an image by phase: {shares}\n"
            f"{run.length.total} steps of {run.length.batch_size} images on {run.mesh.size} x "
            f"{jax.devices()[0].device_kind}, mesh {dict(run.mesh.shape)}")


def summary(config: ConfigDict, workdir: Path) -> dict[str, dict[str, int]]:
    """Prints and returns `{part: {"parameters", "macs"}}`, and prints every parameter's shape;
    nothing is written."""
    run = assemble(config)
    params, macs = run.abstract_state().params, run.model.macs()
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    rows = {name: {"parameters": parameters(params.get(name, {})), "macs": macs.get(name, 0)}
            for name in dict.fromkeys([*params, *macs])}
    rows["total"] = {"parameters": parameters(params), "macs": sum(macs.values())}
    print(f"{'part':24} {'parameters':>16} {'multiply-adds':>20}")
    for name, row in rows.items():
        print(f"{name:24} {row['parameters']:>16,} {row['macs']:>20,}")
    return rows
