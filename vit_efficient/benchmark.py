"""Speed of a run's own parts, as ratios within one process: the step of every phase, its input, and
the host's share."""
import json
from pathlib import Path
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient import device, sharding
from vit_efficient.data.loader import train_batches
from vit_efficient.limits import Count
from vit_efficient.phases import Phase
from vit_efficient.run import Run, assemble


def noise(run: Run, phase: Phase) -> dict:
    """A batch of noise with the shapes, dtypes and places of a real one."""
    rng = np.random.default_rng(0)
    like = run.abstract_batch(run.config.batch_size, phase)
    values = {"image": rng.integers(0, 256, like["image"].shape, np.uint8),
              "label": rng.integers(0, run.data.num_classes, like["label"].shape).astype(np.int32),
              "weight": np.ones(like["weight"].shape, np.float32)}
    return {name: jax.make_array_from_callback(a.shape, like[name].sharding, lambda i, a=a: a[i])
            for name, a in values.items()}


def compile_steps(run: Run) -> tuple[dict, dict]:
    """The compiled step of every phase by its label, and the seconds that tracing and compiling
    took."""
    like, programs, seconds = run.abstract_state(), {}, {}
    for phase in run.phases.distinct():
        begin = time.perf_counter()
        batch = run.abstract_batch(run.config.batch_size, phase)
        programs[phase] = run.step(phase).lower(like, run.frozen(), batch).compile()
        seconds[phase] = time.perf_counter() - begin
    return programs, seconds


def time_steps(run: Run, programs: dict, rounds: int, steps: int) -> tuple[dict, dict]:
    """Medians over `rounds` in turns of `steps` steps of each phase, started as the training loop
    does, metrics fetched a step late: seconds of a step, and how many of them at most the device
    has waited for the host, which is 0 while each step is handed over before the last one ends."""
    state, frozen = run.fresh_state(), run.frozen()
    batches = {phase: noise(run, phase) for phase in programs}
    seconds = {phase: [] for phase in programs}
    idle = {phase: [] for phase in programs}
    for turn in range(rounds + 1):
        for phase, program in programs.items():
            begin, waited, out = time.perf_counter(), 0.0, None
            for _ in range(steps):
                fetched = time.perf_counter()
                state, new = program(state, frozen, batches[phase])
                if out and out["streak"].is_ready():
                    waited += time.perf_counter() - fetched
                jax.device_get(out)
                out = new
            jax.block_until_ready(state)
            if turn:                                     # the first turn warms up
                seconds[phase].append((time.perf_counter() - begin) / steps)
                idle[phase].append(waited / steps)
    return tuple({phase: float(np.median(each)) for phase, each in times.items()}
                 for times in (seconds, idle))


def time_input(run: Run, count: int) -> float:
    """Images a second of the input alone, over `count` batches."""
    with train_batches(run.data, run.augment, run.phases, run.config.batch_size,
                       sharding.batch_sharding(run.mesh), run.config.seed, 0,
                       **run.config.loader) as batches:
        next(batches)
        begin = time.perf_counter()
        done = sum(1 for _, _ in zip(range(count), batches))
        return done * run.config.batch_size / (time.perf_counter() - begin)


def benchmark(config: ConfigDict, workdir: Path, *, rounds: Count = 5, steps: Count = 10,
              input_batches: Count = 20, out: str = "") -> dict:
    """Times the training step of every phase and the input pipeline; prints a table, returns it,
    stores it as JSON in the file `out`.

    The phases take turns in one process, so that their ratios stand whatever else the machine does.
    """
    device.refuse_accidental_cpu()
    run = assemble(config)
    programs, compiling = compile_steps(run)
    seconds, idle = time_steps(run, programs, rounds, steps)
    macs = {phase: sum(run.model.macs(**dict(phase.model)).values()) for phase in programs}
    last = list(programs)[-1]
    rows = {phase.label: {
        "step_seconds": seconds[phase], "relative_time": seconds[phase] / seconds[last],
        "macs": macs[phase], "relative_macs": macs[phase] / macs[last],
        "images_per_second": config.batch_size / seconds[phase],
        "idle_share": idle[phase] / seconds[phase], "compile_seconds": compiling[phase]}
        for phase in programs}
    result = {"model": config.model.name, "batch_size": config.batch_size, "dtype": config.dtype,
              "device": f"{run.mesh.size} x {jax.devices()[0].device_kind}", "phases": rows,
              "input_images_per_second": time_input(run, input_batches),
              "peak_memory_bytes": device.peak_memory()}
    print(table(result))
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def table(result: dict) -> str:
    """The result of a benchmark as lines of text."""
    lines = [f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, "
             f"{result['device']}",
             f"{'phase':24}{'ms/step':>10}{'of last':>9}{'MACs of last':>14}{'images/s':>10}"
             f"{'idle':>8}{'compile s':>11}"]
    for name, row in result["phases"].items():
        lines.append(
            f"{name:24}{1000 * row['step_seconds']:10.1f}{100 * row['relative_time']:8.1f}%"
            f"{100 * row['relative_macs']:13.1f}%{row['images_per_second']:10.0f}"
            f"{100 * row['idle_share']:7.1f}%{row['compile_seconds']:11.1f}")
    lines.append(f"input alone: {result['input_images_per_second']:.0f} images/s; peak memory "
                 f"{result['peak_memory_bytes'] / 2 ** 30:.2f} GiB")
    return "\n".join(lines)
