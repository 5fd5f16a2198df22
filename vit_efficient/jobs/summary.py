"""The job `summary`: parameters and multiply-adds of a model, part by part; compiles nothing.

    python -m vit_efficient.main --config=asvit:base --job=summary --num_classes=1000
"""
from pathlib import Path

from clu import parameter_overview
from ml_collections import ConfigDict

from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.overview import table, training
from vit_efficient.seams.model import shapes
from vit_efficient.settings.values import Whole
from vit_efficient.zoo import create_model


def summary(config: ConfigDict, workdir: Path, *,
            num_classes: Whole | None = None) -> dict[str, dict[str, int]]:
    """Prints and returns `table` of the config's model, and prints every parameter's shape and what
    a training step costs; nothing is written.

    Args:
      num_classes: by default that of the data; where it is given no data are needed, and no
        training step is known.
    """
    run = assemble(config) if num_classes is None else None
    if run:
        model = run.model
    else:
        model = create_model(num_classes=num_classes, image_size=config.data.image_size,
                             dtype=config.dtype, **config.model)
    params, rows = shapes(model)["params"], table(model)
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    print(f"{'part':24} {'parameters':>16} {'trained':>16} {'multiply-adds':>20}")
    for part, row in rows.items():
        print(f"{part:24} {row['parameters']:>16,} {row['trained']:>16,} {row['macs']:>20,}")
    if run:
        print(training(run))
    return rows
