"""The progress line of a run: what is done, how fast, and how long it will still take.

`jobs/train.Loop` calls `line` every `log.every` steps and stores the speeds that it returns.
"""
import logging
import math
import sys
import time

import jax

log = logging.getLogger(__name__)


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
