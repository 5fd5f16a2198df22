"""The job `benchmark`: times the training step of every phase, the input, and both.

    python -m vit_efficient.main --config=asvit:digits --job=benchmark [--against=timm] [--out=FILE]

Prints a table and stores it as JSON in `--out`. A paper may have a benchmark of its own in
`papers/<paper>/jobs.py`, which adds to this one.
"""
from pathlib import Path
from typing import Literal

from ml_collections import ConfigDict

from vit_efficient.engine import machine
from vit_efficient.engine.assemble import assemble
from vit_efficient.measure.speed import measure, report, table
from vit_efficient.settings.values import Count


def benchmark(config: ConfigDict, workdir: Path, *, rounds: Count = 5, steps: Count = 10,
              input_batches: Count = 20, against: Literal["timm"] | None = None,
              out: str = "") -> dict:
    """Times the training step of every phase, the input, and both; prints a table, returns it,
    stores it as JSON in the file `out`.

    The phases take turns in one process, so that their ratios stand whatever else the machine does.
    `against=timm` times timm's model of the same name as well, eager and by `torch.compile`.
    """
    machine.refuse_accidental_cpu()
    result = measure(assemble(config), rounds, steps, input_batches, against)
    report(result, table(result), out)
    return result
