"""Speed of a run's own parts, as ratios within one process: the step of every phase, its input, and
the host's share."""
import json
from pathlib import Path
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient import sharding, train
from vit_efficient.data.loader import train_batches
from vit_efficient.limits import Count
from vit_efficient.run import Run, assemble


def images(run: Run, phase) -> dict:
    """A batch of noise with the shapes, dtypes and places of a real one."""
    rng = np.random.default_rng(0)
    shapes = run.abstract_batch(run.config.batch_size, phase)
    values = {"image": rng.integers(0, 256, shapes["image"].shape, np.uint8),
              "label": rng.integers(0, run.data.num_classes, shapes["label"].shape).astype(np.int32),
              "weight": np.ones(shapes["weight"].shape, np.float32)}
    return {name: jax.make_array_from_callback(a.shape, shapes[name].sharding, lambda i, a=a: a[i])
            for name, a in values.items()}


def time_steps(programs: dict, state, frozen: dict, batches: dict, rounds: int) -> tuple[dict, dict]:
    """Median seconds of a step of each program, and of the host's work to start one, over `rounds`
    in turns."""
    seconds, host = {phase: [] for phase in programs}, {phase: [] for phase in programs}
    for turn in range(rounds + 1):
        for phase, program in programs.items():
            begin = time.perf_counter()
            state, out = program(state, frozen, batches[phase])
            started = time.perf_counter()
            jax.block_until_ready((state, out))
            if turn:                                      # the first turn warms up
                seconds[phase].append(time.perf_counter() - begin)
                host[phase].append(started - begin)
    median = lambda times: {phase: float(np.median(values)) for phase, values in times.items()}
    return median(seconds), median(host)


def benchmark(config: ConfigDict, workdir: Path, *, rounds: Count = 5, input_batches: Count = 20,
              out: str = "") -> dict:
    """Times the training step of every phase and the input pipeline; prints a table, returns it,
    stores it as `out`.

    The phases take turns in one process, so that their ratios stand whatever else the machine does.
    """
    run = assemble(config)
    phases = {train.label(phase): phase for phase in run.phases.distinct()}
    like, frozen = run.abstract_state(), run.frozen()
    programs, compiling = {}, {}
    for name, phase in phases.items():
        begin = time.perf_counter()
        shapes = run.abstract_batch(config.batch_size, phase)
        programs[name] = run.step(phase).lower(like, frozen, shapes).compile()
        compiling[name] = time.perf_counter() - begin
    seconds, host = time_steps(programs, run.fresh_state(), frozen, {n: images(run, p) for n, p in phases.items()}, rounds)
    batches = train_batches(run.data.train, run.augment, run.phases, config.batch_size, run.image_size,
                            sharding.batch_sharding(run.mesh), config.seed, 0, **config.loader)
    next(batches)
    begin = time.perf_counter()
    count = sum(1 for _, _ in zip(range(input_batches), batches))
    input_seconds = (time.perf_counter() - begin) / max(count, 1)
    batches.close()
    macs = {name: sum(run.model.macs(**dict(phase.model)).values()) for name, phase in phases.items()}
    last = list(phases)[-1]
    rows = {name: {"step_seconds": seconds[name], "relative_time": seconds[name] / seconds[last],
                   "macs": macs[name], "relative_macs": macs[name] / macs[last],
                   "images_per_second": config.batch_size / seconds[name],
                   "host_share": host[name] / seconds[name], "compile_seconds": compiling[name]} for name in phases}
    result = {"model": config.model.name, "batch_size": config.batch_size, "dtype": config.dtype,
              "device": f"{run.mesh.size} x {jax.devices()[0].device_kind}", "phases": rows,
              "input_images_per_second": config.batch_size / input_seconds}
    print(f"{config.model.name}, batch {config.batch_size}, {config.dtype}, {result['device']}")
    print(f"{'phase':24}{'ms/step':>10}{'of last':>9}{'MACs of last':>14}{'images/s':>10}{'host':>8}{'compile s':>11}")
    for name, row in rows.items():
        print(f"{name:24}{1000 * row['step_seconds']:10.1f}{100 * row['relative_time']:8.1f}%"
              f"{100 * row['relative_macs']:13.1f}%{row['images_per_second']:10.0f}{100 * row['host_share']:7.1f}%"
              f"{row['compile_seconds']:11.1f}")
    print(f"input alone: {result['input_images_per_second']:.0f} images/s")
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
