"""Parameters and multiply-adds of a model, part by part, before anything is compiled."""
from pathlib import Path

from clu import parameter_overview
import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient.run import Run, assemble


def overview(run: Run) -> str:
    """A line for the log: parameters, multiply-adds of each phase relative to the last, devices."""
    params = run.abstract_state().params
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    phases = list(run.phases.distinct())
    macs = [sum(run.model.macs(**dict(phase.model)).values()) for phase in phases]
    shares = ", ".join(f"{m / 1e6:,.1f} M ({100 * m / macs[-1]:.1f} %)" for m in macs)
    return (f"{run.config.model.name}: {count:,} parameters, multiply-adds per image by phase {shares}; "
            f"{run.length.total} steps of {run.length.batch_size} images; "
            f"{run.mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(run.mesh.shape)}")


def summary(config: ConfigDict, workdir: Path) -> dict[str, dict[str, int]]:
    """Prints and returns `{part: {"parameters", "macs"}}` and every parameter's shape; nothing is
    written."""
    run = assemble(config)
    params = run.abstract_state().params
    counts = {name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    macs = run.model.macs()
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    rows = [(name, counts.get(name, 0), macs.get(name, 0)) for name in dict.fromkeys([*counts, *macs])]
    rows.append(("total", sum(counts.values()), sum(macs.values())))
    for name, parameters, adds in (("part", "parameters", "multiply-adds"), *rows):
        print(f"{name:24} {parameters:>16,} {adds:>20,}" if adds != "multiply-adds" else
              f"{name:24} {parameters:>16} {adds:>20}")
    return {name: {"parameters": parameters, "macs": adds} for name, parameters, adds in rows}
