"""What a run says of its `(sum, count)` metrics: a JSON file, TensorBoard, the progress line."""
import json
import logging
import math
import os
from pathlib import Path
import sys
import time

import jax
from tensorboardX import SummaryWriter

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
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(fresh, path)


class Progress:
    """The progress line: a bar that rewrites itself on a terminal, plain lines in a log.

    `work[s]` is the work (multiply-adds, any unit) of the steps before s: time left is told by
    work, since a step of a coarse phase costs a fraction of a fine one.
    """

    def __init__(self, work, batch_size: int, start: int):
        self._work, self._batch = work, batch_size
        self._since, self._step, self._paused = time.perf_counter(), start, 0.0
        self._terminal = sys.stderr.isatty() and jax.process_index() == 0

    def pause(self, seconds: float) -> None:
        """Time that was not training (an evaluation, a checkpoint) and is not counted as such."""
        self._paused += seconds

    def line(self, step: int, values: dict[str, float], waited: float) -> dict[str, float]:
        """Shows the state after `step` steps; returns the speeds as metrics."""
        now = time.perf_counter()
        spent, done = max(now - self._since - self._paused, 1e-9), step - self._step
        worked = self._work[step] - self._work[self._step]
        total = len(self._work) - 1
        left = spent * (self._work[total] - self._work[step]) / worked if worked else 0.0
        speeds = {"images_per_second": done * self._batch / spent,
                  "step_seconds": spent / max(done, 1), "waiting_share": min(waited / spent, 1.0)}
        self._since, self._step, self._paused = now, step, 0.0
        accuracy = f"  top-1 {100 * values['top1']:5.1f} %" if "top1" in values else ""
        text = (f"step {step}/{total}  loss {values.get('loss', math.nan):.4f}{accuracy}  "
                f"{speeds['images_per_second']:.0f} images/s  "
                f"{1000 * speeds['step_seconds']:.1f} ms/step  "
                f"input wait {100 * speeds['waiting_share']:.1f} %  left {clock(left)}")
        if self._terminal:
            bar, end = ("#" * int(20 * step / total)).ljust(20, "."), "\n" * (step == total)
            sys.stderr.write(f"\r\x1b[2K[{bar}] {text}{end}")
            sys.stderr.flush()
        else:
            log.info("%s", text)
        return speeds

    def interrupt(self) -> None:
        """Moves below the bar, so that another message does not write into it."""
        if self._terminal:
            sys.stderr.write("\n")


def clock(seconds: float) -> str:
    """Seconds as `3:07` or `2:03:07`."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def draw_curves(workdir: Path) -> Path:
    """`curves.png`, from `metrics.jsonl`: loss and accuracy over steps, a line at every phase."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read(workdir / "metrics.jsonl")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")

    def curve(axes, name: str, label: str, scale: float = 1.0) -> None:
        points = [(r["step"], scale * r[name]) for r in records if r.get(name) is not None]
        if points:
            axes.plot(*zip(*points), label=label, marker="." if len(points) < 60 else "")

    curve(left, "loss", "training")
    curve(left, "val/loss", "held out")
    curve(right, "top1", "training", 100)
    names = sorted({name for r in records for name in r if name.startswith("val/top1")})
    for name in names:
        curve(right, name, name.replace("val/top1", "held out ").strip().replace("_", " "), 100)
    phases = [(r["step"], r["phase"]) for r in records if "phase" in r]
    for axes, title in (left, "loss"), (right, "top-1 (%)"):
        for before, after in zip(phases, phases[1:]):
            if before[1] != after[1]:
                axes.axvline(before[0], color="gray", linewidth=0.8, linestyle=":")
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    path = workdir / "curves.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
