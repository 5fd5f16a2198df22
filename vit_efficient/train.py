"""The training loop."""
import logging
from pathlib import Path
import time
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient import device, distributed, metrics, sharding, state as states, summary
from vit_efficient.checkpoint import Checkpoints
from vit_efficient.config import store
from vit_efficient.data.loader import train_batches
from vit_efficient.evaluate import Validation, table
from vit_efficient.limits import Count, Positive
from vit_efficient.phases import Phase
from vit_efficient.run import Run, assemble

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains the run of `config` in `workdir`, or goes on where its newest good checkpoint ended.

    Returns the last evaluation. Raises ValueError for a config that does not fit together, before
    anything is written or compiled, and FloatingPointError after too many steps in a row with
    numbers that are not finite.
    """
    device.refuse_accidental_cpu()
    run = assemble(config)
    validation = Validation(run, "val", **config.validation)
    device.compile_cache()
    with Checkpoints(workdir / "checkpoints", **config.checkpoint) as checkpoints:
        found = checkpoints.restore(run.abstract_state())
        start, state = found[:2] if found else (0, run.fresh_state())
        store(config, workdir)
        log.info("%s", summary.overview(run))
        if found:
            log.info("resumed at step %d of %d", start, run.phases.total)
        loop = Loop(run, workdir, start, validation, checkpoints, **config.log)
        try:
            values = loop.go(state)
        finally:
            loop.close()
    report(run, workdir, values)
    return values


class Tracing(NamedTuple):
    """The steps from `first` on whose profile is written to the workdir."""
    first: int
    steps: int


class Loop:
    """The steps of a run from `start` on: its programs, its input, what it writes."""

    def __init__(self, run: Run, workdir: Path, start: int, validation: Validation, checkpoints: Checkpoints, *,
                 every: Count = 50, profile_at: Count | None = None, profile_steps: Count = 5,
                 watchdog_minutes: Positive = 30.0):
        self.run, self.workdir, self.start = run, workdir, start
        self.validation, self.checkpoints, self.every = validation, checkpoints, every
        self.profile = Tracing(profile_at or -1, profile_steps)
        self.writer = metrics.Writer(workdir, start)
        self.mean = metrics.Mean()
        self.values: dict[str, float] = {}
        self.frozen = run.frozen()
        self.programs = self.compile()
        self.progress = metrics.Progress(work_before(run), run.config.batch_size, start)
        self.batches = train_batches(
            run.data.train, run.augment, run.phases, run.config.batch_size, run.image_size,
            sharding.batch_sharding(run.mesh), run.config.seed, start, **run.config.loader)
        self.watchdog = distributed.Watchdog(watchdog_minutes)

    def compile(self) -> dict[Phase, jax.stages.Compiled]:
        """Every program that is still ahead, compiled (or loaded from the cache) before the first
        step."""
        like, programs = self.run.abstract_state(), {}
        for phase, first in self.run.phases.distinct(self.start).items():
            begin = time.perf_counter()
            lowered = self.run.step(phase).lower(
                like, self.frozen, self.run.abstract_batch(self.run.config.batch_size, phase))
            traced = time.perf_counter()
            programs[phase] = lowered.compile()
            done = time.perf_counter()
            self.writer.write(first, {"trace_seconds": traced - begin, "compile_seconds": done - traced})
            log.info("program of %s: traced in %.1f s, compiled in %.1f s", label(phase), traced - begin, done - traced)
        return programs

    def go(self, state: states.State) -> dict[str, float]:
        """Runs the steps; the metrics of a step are fetched while the next one runs."""
        total, pending = self.run.phases.total, None
        for step in range(self.start, total):
            phase = self.run.phases.phase_at(step)
            self.trace(step)
            batch = next(self.batches)
            state, out = self.programs[phase](state, self.frozen, batch)
            if pending:
                self.arrived(*pending)
            pending = step + 1, phase, out
            self.watchdog.pat()
            stop = distributed.stop_requested(step)
            if stop or self.validation.due(step + 1) or self.checkpoints.due(step + 1):
                self.arrived(*pending)
                pending = None
                self.pause(step + 1, phase, state, evaluate=self.validation.due(step + 1))
            if stop:
                self.checkpoints.wait()
                raise SystemExit(distributed.STOPPED)
        if pending:
            self.arrived(*pending)
        return self.values

    def arrived(self, done: int, phase: Phase, out: dict) -> None:
        """Takes in the metrics of the step that made it `done` steps."""
        out = jax.device_get(out)
        if out["streak"]:
            log.warning("step %d: a number was not finite, the update was left out (%d in a row, %d in all)",
                        done - 1, out["streak"], out["skipped"])
            if out["streak"] >= self.run.config.step.stop_after_skips:
                raise FloatingPointError(
                    f"{out['streak']} steps in a row up to step {done - 1} had numbers that are not finite; the last "
                    f"good checkpoint is step {self.checkpoints.latest()} in {self.workdir}. A lower optim.lr or "
                    f"optim.clip_norm often helps; step.stop_after_skips is the limit")
        else:
            self.mean.add(out["metrics"])
        if done % self.every == 0 or done == self.run.phases.total:
            means = self.mean.take()
            speeds = self.progress.line(done, means, self.batches.take_waited())
            self.writer.write(done, means | speeds | {
                "skipped": int(out["skipped"]), "phase": list(self.programs).index(phase),
                "peak_memory_bytes": device.peak_memory()})

    def pause(self, done: int, phase: Phase, state: states.State, evaluate: bool) -> None:
        """Evaluates where it is due, and stores the state; the clock of the steps stands still."""
        begin = time.perf_counter()
        if evaluate:
            self.values = self.validation(vars(state), done, phase)
            self.writer.write(done, {f"val/{name}": value for name, value in self.values.items()})
            self.progress.interrupt()
            log.info("step %d, held out: %s", done, ", ".join(table(self.values).splitlines()))
        ranked = self.values.get("top1_ema", self.values.get("top1")) if evaluate else None
        self.checkpoints.save(done, state, {"top1": ranked} if evaluate else None)
        self.watchdog.pat()
        self.progress.pause(time.perf_counter() - begin)

    def trace(self, step: int) -> None:
        """Starts and ends the profile that was asked for."""
        if step == self.profile.first:
            jax.profiler.start_trace(str(self.workdir / "profile"))
        elif step == self.profile.first + self.profile.steps:
            jax.profiler.stop_trace()
            log.info("profile of steps %d to %d: %s", self.profile.first, step - 1, self.workdir / "profile")

    def close(self) -> None:
        """Ends threads and files, also after an error."""
        self.batches.close()
        self.watchdog.close()
        self.writer.close()


def label(phase: Phase) -> str:
    """A phase in words: `stride 16, dilation 5`."""
    return ", ".join(f"{name} {value}" for name, value in phase.model) or "the whole run"


def work_before(run: Run) -> np.ndarray:
    """Multiply-adds of one image a step, summed over the steps before each: float64 [total + 1]."""
    macs = {phase: sum(run.model.macs(**dict(phase.model)).values()) for phase in run.phases.distinct()}
    each = [macs[run.phases.phase_at(step)] for step in range(run.phases.total)]
    return np.concatenate([[0.0], np.cumsum(each, dtype=np.float64)])


def report(run: Run, workdir: Path, values: dict[str, float]) -> None:
    """Says in plain words what came out, where it lies and what to try next."""
    if jax.process_index():
        return
    curves = metrics.draw_curves(workdir)
    print(f"""
{run.config.model.name} on {len(run.data.val)} held-out images after {run.phases.total} steps:
{table(values)}

checkpoints   {workdir / 'checkpoints'}
curves        {curves}
TensorBoard   tensorboard --logdir {workdir / 'tensorboard'}
next          python -m vit_efficient.main --job=evaluate --workdir={workdir}
""")
