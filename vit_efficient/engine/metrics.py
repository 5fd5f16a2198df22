"""What a run records: means of `(sum, count)` metrics, as lines of `metrics.jsonl` and as
TensorBoard events.

`jobs/train.Loop` adds every step's metrics to a `Mean` and writes records by a `Writer`; the curves
and the last scores are read back from the file (`read`).
"""
import json
import logging
import math
from pathlib import Path

import jax

from vit_efficient import disk

log = logging.getLogger(__name__)


class Mean:
    """Means of `(sum, count)` pairs over the steps since the last `take`."""

    def __init__(self):
        self._sums: dict[str, list[float]] = {}

    def add(self, metrics: dict) -> None:
        """Adds one step's metrics; the pairs are numbers on the host."""
        for name, (total, count) in metrics.items():
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(count)

    def take(self) -> dict[str, float]:
        """The means, and starts anew."""
        sums, self._sums = self._sums, {}
        return {name: total / count for name, (total, count) in sums.items() if count}


class Writer:
    """Writes records, on process 0: lines of `metrics.jsonl`, and the same as TensorBoard events.

    A run that resumes at `start` first takes out what an earlier try wrote of later steps (and a
    line torn by a kill), so every step stands in the file once.
    """

    def __init__(self, workdir: Path, start: int):
        self._active = jax.process_index() == 0
        if self._active:
            from tensorboardX import SummaryWriter  # imports torch where there is one: seconds
            self._path = workdir / "metrics.jsonl"
            rewrite(self._path, [record for record in read(self._path) if record["step"] <= start])
            self._file = self._path.open("a", encoding="utf-8")
            self._events = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start + 1, filename_suffix=f".{start:012}")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Stores numbers; one that is not finite is `null` in the file and not in TensorBoard."""
        if not self._active:
            return
        clean = {name: float(v) if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in clean.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both files."""
        if self._active:
            self._file.close()
            self._events.close()


def read(path: Path) -> list[dict]:
    """The records of a `metrics.jsonl` without a torn last line; a missing file has none."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: a line cut off by a kill was left out", path)
    return records


def rewrite(path: Path, records: list[dict]) -> None:
    """Replaces a `metrics.jsonl` in one rename."""
    disk.write_text(path, "".join(json.dumps(record) + "\n" for record in records))
