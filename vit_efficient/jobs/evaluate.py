"""The job `evaluate`: scores weights on a split.

    python -m vit_efficient.main --workdir=runs/asvit-digits --job=evaluate
    python -m vit_efficient.main --config=deit:imagefolder=PATH --config.init_from=FILE \\
        --job=evaluate

Reads a workdir or `init_from` and prints a table; a paper may have an evaluation of its own in
`papers/<paper>/jobs.py`, as Scala's of every width.
"""
from pathlib import Path
from typing import Literal

import jax
from ml_collections import ConfigDict

from vit_efficient.engine import machine, start as starts
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.validation import Validation, table


def evaluate(config: ConfigDict, workdir: Path, *, split: Literal["train", "val"] = "val",
             weights: str = "best") -> dict[str, float]:
    """Scores a checkpoint of `workdir` (its best or latest one, or a step) on a split, without
    augmentation; where it has none, the weights of `init_from`.

    Prints the table and returns it; nothing is written. Raises ValueError where there is no such
    checkpoint or it is of another model.
    """
    machine.refuse_accidental_cpu()
    run = assemble(config)
    machine.compile_cache()
    step, fields = starts.weights(run, Path(workdir), weights)
    values = Validation(run, split, **config.validation)(fields, step)
    if jax.process_index() == 0:
        count = len(getattr(run.data, split))
        print(f"{config.model.name}, step {step}, {count} images of {split}\n{table(values)}")
    return values
