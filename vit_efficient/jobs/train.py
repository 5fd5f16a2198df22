"""The job `train`, and the training loop.

    python -m vit_efficient.main --config=asvit:digits --workdir=DIR [--config.optim.lr=1e-3]

`train` builds the run, decides what it starts from, and hands it to a `Loop`, whose `go` is the
loop itself: a step is started, then the metrics of the step before are fetched, so that the device
never waits. What a step computes stands in `engine/step.py`.
"""
from collections.abc import Callable
import logging
from pathlib import Path
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient.engine import distributed, machine, metrics, start as starts, state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.checkpoint import Checkpoints
from vit_efficient.engine.curves import draw_curves
from vit_efficient.engine.overview import overview
from vit_efficient.engine.progress import Progress
from vit_efficient.engine.run import Run
from vit_efficient.engine.validation import Validation, table
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.store import check_same_run, store
from vit_efficient.settings.values import Count, Positive

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path) -> dict[str, float]:
    """Trains the run of `config` in `workdir`, or goes on where its newest whole checkpoint ended.

    Returns the last evaluation. Raises ValueError for a config that does not fit together or is not
    that of `workdir`, before anything is written or compiled, and FloatingPointError after too many
    steps in a row with numbers that are not finite. Leaves by SystemExit(143) after SIGTERM.
    """
    workdir = Path(workdir)
    machine.refuse_accidental_cpu()
    check_same_run(config, workdir)
    run = assemble(config)
    for phase in run.phases.distinct():
        run.step(phase)                                  # refuses what cannot be trained
    validation = Validation(run, "val", **config.validation)
    machine.compile_cache()
    given = starts.given(run, workdir)
    distributed.make_folder(workdir)
    with Checkpoints(workdir / "checkpoints", **config.checkpoint) as checkpoints:
        start, state = starts.first_state(run, checkpoints, given)
        if jax.process_index() == 0:
            store(config, workdir)
        log.info("%s", overview(run))
        if start:
            log.info("going on at step %d of %d", start, run.phases.total)
        loop = Loop(run=run, workdir=workdir, start=start, validation=validation,
                    checkpoints=checkpoints, **config.log)
        with distributed.stop_signal() as stop_requested:
            try:
                values = loop.go(state, stop_requested)
            finally:
                loop.close()
    values = values or newest_scores(workdir)
    report(run, workdir, values)
    return values


class Loop:
    """The steps of a run from `start` on: its programs, its input, what it writes.

    Args:
      every: steps from one progress line and record to the next.
      profile_at: first step of a profile, written to the workdir for TensorBoard or Perfetto.
      profile_steps: steps that it lasts.
      watchdog_minutes: a run in which nothing happens for so long ends with every thread's stack.
    """

    def __init__(self, run: Run, workdir: Path, start: int, validation: Validation,
                 checkpoints: Checkpoints, *, every: Count = 50, profile_at: Count | None = None,
                 profile_steps: Count = 5, watchdog_minutes: Positive = 30.0):
        self.run, self.workdir, self.start = run, workdir, start
        self.validation, self.checkpoints, self.every = validation, checkpoints, every
        self.profiled = range(profile_at, profile_at + profile_steps) if profile_at else range(0)
        self.profiling = False
        self.writer = metrics.Writer(workdir, start)
        self.mean = metrics.Mean()
        self.values: dict[str, float] = {}
        self.frozen = run.frozen()
        # Before compiling, so that the first batch is ready when the first step is.
        self.batches = run.batches(start)
        try:
            self.programs = self.compile()
        except BaseException:                   # workers left behind would outlive the error
            self.batches.close()
            raise
        self.progress = Progress(work_before(run), run.config.batch_size, start)
        self.watchdog = distributed.Watchdog(watchdog_minutes)

    def compile(self) -> dict[Phase, jax.stages.Compiled]:
        """Every program that is still ahead, compiled or loaded from the cache."""
        programs = {}
        for phase, first in self.run.phases.distinct(self.start).items():
            begin = time.perf_counter()
            lowered = self.run.traced_step(phase).lower()
            traced = time.perf_counter() - begin
            programs[phase] = lowered.compile()
            compiled = time.perf_counter() - begin - traced
            self.writer.write(first, {"trace_seconds": traced, "compile_seconds": compiled})
            log.info("program of %s: traced in %.1f s, compiled or loaded in %.1f s",
                     phase.label, traced, compiled)
        return programs

    def go(self, state: states.State, stop_requested: Callable[[int], bool]) -> dict[str, float]:
        """Runs the steps; the metrics of a step are fetched while the next one runs."""
        total, pending = self.run.phases.total, None
        for step in range(self.start, total):
            phase = self.run.phases.phase_at(step)
            self.profile(step)
            batch = next(self.batches)
            state, out = self.programs[phase](state, self.frozen, batch)
            if pending:
                self.arrived(*pending)
            pending = step + 1, phase, out
            self.watchdog.pat()
            stop = stop_requested(step)
            last = step + 1 == total
            if stop or last or self.validation.due(step + 1) or self.save_due(step + 1):
                self.arrived(*pending)
                pending = None
                self.pause(step + 1, phase, state)
            if stop:
                log.warning("SIGTERM: stopped after step %d; the same command goes on", step)
                raise SystemExit(distributed.STOPPED)
        return self.values

    def save_due(self, done: int) -> bool:
        """True where a checkpoint is due by epochs or, at a progress line, by the clock."""
        return (self.checkpoints.due(done, self.run.length.steps_per_epoch)
                or done % self.every == 0 and self.checkpoints.overdue())

    def arrived(self, done: int, phase: Phase, out: dict) -> None:
        """Takes in the metrics of the step that made it `done` steps."""
        out = jax.device_get(out)
        if out["streak"]:
            self.skipped(done - 1, int(out["streak"]), int(out["skipped"]))
        else:
            self.mean.add(out["metrics"])
        if done % self.every == 0 or done == self.run.phases.total:
            waited, self.batches.waited = self.batches.waited, 0.0
            means = self.mean.take()
            speeds = self.progress.line(done, means, waited)
            self.writer.write(done, means | speeds | {
                "skipped": int(out["skipped"]), "phase": list(self.programs).index(phase),
                "peak_memory_bytes": machine.peak_memory()})

    def skipped(self, step: int, streak: int, count: int) -> None:
        """Reports a step whose update was left out; ends the run after too many in a row."""
        log.warning("step %d: a number was not finite, the update was left out (%d in a row, %d in "
                    "all)", step, streak, count)
        if streak >= self.run.config.step.stop_after_skips:
            good = max(self.checkpoints.steps(), default=None)
            raise FloatingPointError(
                f"{streak} steps in a row up to step {step} had numbers that are not finite "
                f"(step.stop_after_skips); the last checkpoint is step {good} in {self.workdir}. "
                "A lower optim.lr or a lower optim.clip_norm often helps")

    def pause(self, done: int, phase: Phase, state: states.State) -> None:
        """Evaluates where it is due, and stores the state; the clock of the steps stands still."""
        begin, ranked = time.perf_counter(), None
        self.batches.bad.settle()
        if self.validation.due(done):
            fields = states.weight_fields(state)
            self.values = self.validation(fields, done, phase, self.watchdog.pat)
            self.writer.write(done, {f"val/{name}": v for name, v in self.values.items()})
            self.progress.interrupt()
            log.info("step %d, held out: %s", done, ", ".join(table(self.values).splitlines()))
            ranked = {"top1": self.values.get("top1_ema", self.values["top1"])}
        self.checkpoints.save(done, state, ranked, self.run.fingerprint())
        self.watchdog.pat()
        self.progress.pause(time.perf_counter() - begin)

    def profile(self, step: int) -> None:
        """Starts and ends the profile that was asked for."""
        if (step in self.profiled) == self.profiling:
            return
        self.profiling = not self.profiling
        if self.profiling:
            jax.profiler.start_trace(str(self.workdir / "profile"))
        else:
            jax.profiler.stop_trace()
            log.info("profile: %s", self.workdir / "profile")

    def close(self) -> None:
        """Ends threads, files and a profile, also after an error."""
        self.profile(-1)                                 # no step: ends one that goes on
        self.batches.close()
        self.watchdog.close()
        self.writer.close()


def work_before(run: Run) -> np.ndarray:
    """Multiply-adds of one image a step, summed over the steps before each: float64 [total + 1]."""
    macs = {phase: run.macs(phase) for phase in run.phases.distinct()}
    each = [macs[run.phases.phase_at(step)] for step in range(run.phases.total)]
    return np.concatenate([[0.0], np.cumsum(each, dtype=np.float64)])


def newest_scores(workdir: Path) -> dict[str, float]:
    """The last evaluation in the metrics file of a run that was already complete."""
    records = metrics.read(workdir / "metrics.jsonl")
    scored = [record for record in records if any(name.startswith("val/") for name in record)]
    return {name.removeprefix("val/"): value for record in scored[-1:]
            for name, value in record.items() if name.startswith("val/")}


def report(run: Run, workdir: Path, values: dict[str, float]) -> None:
    """Says in plain words what came out, where it lies and what to try next."""
    if jax.process_index():
        return
    curves = draw_curves(workdir)
    scored = table(values) or "nothing is scored: the objective trains no classifier"
    print(f"""
{run.config.model.name} on {len(run.data.val)} held-out images after {run.phases.total} steps:
{scored}

peak memory   {machine.peak_memory() / 2 ** 30:.2f} GiB
checkpoints   {workdir / 'checkpoints'}
curves        {curves}
TensorBoard   tensorboard --logdir {workdir / 'tensorboard'}
next          python -m vit_efficient.main --job=evaluate --workdir={workdir}
""")
