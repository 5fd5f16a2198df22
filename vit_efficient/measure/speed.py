"""The speed of a run's own parts, as ratios within one process: the step of every phase, its input,
both together, and the host's share; on demand the same step in timm.

`jobs/benchmark` and the papers' own benchmarks call `measure`, print `table` and store the result
by `report`; above them stand the measurements, each a function of a run. Absolute times are those
of the machine that printed them; what may be claimed are the ratios, since the parts take turns and
whatever else the machine does slows all of them.

    result = measure(assemble(config), rounds=5, steps=10, input_batches=20, against=None)
    print(table(result))
"""
import io
import itertools
from pathlib import Path
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from vit_efficient import disk
from vit_efficient.data.batches import TrainBatches, share_of
from vit_efficient.data.host import jpeg
from vit_efficient.data.host.crops import crop_box
from vit_efficient.engine import machine, sharding, state as states
from vit_efficient.engine.run import Run
from vit_efficient.measure.chips import PEAKS
from vit_efficient.measure.timm import Timm, compare
from vit_efficient.seams.phases import Phase


def noise(run: Run, phase: Phase) -> dict:
    """A batch of noise with the shapes, dtypes and places of a real one."""
    rng = np.random.default_rng(0)
    like = run.abstract_batch(run.config.batch_size, phase)
    values = {"image": rng.integers(0, 256, like["image"].shape, np.uint8),
              "label": rng.integers(0, run.data.num_classes, like["label"].shape).astype(np.int32),
              "weight": np.ones(like["weight"].shape, np.float32)}
    if "teacher" in like:
        values["teacher"] = rng.normal(size=like["teacher"].shape).astype(np.float16)
    return {name: jax.make_array_from_callback(a.shape, like[name].sharding, lambda i, a=a: a[i])
            for name, a in values.items()}


def compile_steps(run: Run) -> tuple[dict, dict]:
    """The compiled step of every phase by its label, and the seconds that tracing and compiling
    took."""
    programs, seconds = {}, {}
    for phase in run.phases.distinct():
        begin = time.perf_counter()
        programs[phase] = run.traced_step(phase).lower().compile()
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


def time_input(run: Run, count: int) -> dict[str, float | None]:
    """Images a second of the input alone, over `count` batches: as the loader prepares them, and of
    one core, by the processor time of preparing batches one after the other. Beside it, in turns,
    as many of the same images decoded, cropped at random and resized by Pillow alone, and the ratio
    of both; None where the source holds no files."""
    with run.batches(0) as batches:
        next(batches)
        begin = time.perf_counter()
        done = sum(1 for _ in itertools.islice(batches, count))
        seconds = time.perf_counter() - begin
    source, share = run.data.train, share_of(sharding.batch_sharding(run.mesh))
    alone = TrainBatches(source=source, transform=run.augment.train, phases=run.phases,
                         batch_size=run.config.batch_size, image_size=run.image_size, share=share,
                         seed=run.config.seed, start=0)
    alone[0]
    files, ours, pillow, images = hasattr(source, "encoded"), 0.0, 0.0, 0
    for i in range(min(len(alone), count)):
        begin = time.process_time()
        size = len(alone[i]["label"])
        between = time.process_time()
        for j in range(size if files else 0):
            bare_pillow(source.encoded((images + j) % len(source)).data, run.image_size,
                        np.random.default_rng((i, j)))
        ours, pillow = ours + between - begin, pillow + time.process_time() - between
        images += size
    return {"input_images_per_second": done * run.config.batch_size / seconds,
            "input_images_per_second_and_core": images / ours,
            "pillow_images_per_second_and_core": images / pillow if files else None,
            "input_over_pillow": pillow / ours if files else None}


def bare_pillow(data: bytes, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random resized crop [size, size, 3] by Pillow alone, nothing else done: the measure of an
    input."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = crop_box(image.height, image.width, (0.08, 1.0), (3 / 4, 4 / 3), rng)
    box = (left, top, left + width, top + height)
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BICUBIC))


def time_together(run: Run, programs: dict, steps: int) -> dict[Phase, dict[str, float]]:
    """Each phase's steps on real batches: images a second, and the share of the time in which a
    step waited for its batch."""
    state, frozen, rows = run.fresh_state(), run.frozen(), {}
    for phase, first in run.phases.distinct().items():
        with run.batches(first) as batches:
            state, _ = programs[phase](state, frozen, next(batches))
            jax.block_until_ready(state)
            begin, batches.waited, done = time.perf_counter(), 0.0, 0
            for batch in itertools.islice(batches, steps):
                if run.phases.phase_at(first + done + 1) != phase:
                    break
                state, _ = programs[phase](state, frozen, batch)
                done += 1
            jax.block_until_ready(state)
            seconds = time.perf_counter() - begin
        rows[phase] = {"with_input_images_per_second": done * run.config.batch_size / seconds,
                       "waiting_share": min(batches.waited / seconds, 1.0)}
    return rows


def compare_with_timm(run: Run, programs: dict, rounds: int, steps: int) -> dict[str, Any]:
    """`timm.compare` of the last phase's training step, and of its evaluation pass."""
    phase, frozen = list(programs)[-1], run.frozen()
    batch, state = noise(run, phase), run.fresh_state()
    program = run.scoring(phase)

    def train(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = programs[phase](state, frozen, batch)
        jax.block_until_ready(state)

    def forward(count: int) -> None:
        weights = states.weights(states.weight_fields(state))
        jax.block_until_ready([program(weights, state.step, batch) for _ in range(count)])

    timm = Timm(run.config, run.data.num_classes, run.image_size)
    try:
        return compare(timm, {"train": train, "forward": forward}, rounds, steps)
    finally:
        timm.close()


def achieved(run: Run, macs: float, seconds: float) -> dict[str, float | None]:
    """FLOP/s of a training step on all devices, counted as three times its forward passes of `macs`
    multiply-adds an image, two FLOPs each, and their share of the devices' bfloat16 peak where that
    is known and meant."""
    flops = 6 * macs * run.config.batch_size * (run.data.train.frames or 1) / seconds
    peak = PEAKS.get(run.mesh.devices.flat[0].device_kind)
    known = peak and run.config.dtype == "bfloat16"
    return {"flops_per_second": flops,
            "share_of_peak": flops / (peak * run.mesh.size) if known else None}


def measure(run: Run, rounds: int, steps: int, input_batches: int, against: str | None) -> dict:
    """The result of `benchmark`; ValueError where timm's model cannot be timed beside the run's."""
    config = run.config
    if against and run.data.train.frames:
        raise ValueError(f"--against={against}: its models take images, data.source = "
                         f"{config.data.source} holds clips")
    programs, compiling = compile_steps(run)
    seconds, idle = time_steps(run, programs, rounds, steps)
    together = time_together(run, programs, steps)
    macs = {phase: run.macs(phase) for phase in programs}
    last = list(programs)[-1]
    rows = {phase.label: {
        "step_seconds": seconds[phase], "relative_time": seconds[phase] / seconds[last],
        "macs": macs[phase], "relative_macs": macs[phase] / macs[last],
        "images_per_second": config.batch_size / seconds[phase],
        **achieved(run, macs[phase], seconds[phase]),
        "idle_share": idle[phase] / seconds[phase], **together[phase],
        "compile_seconds": compiling[phase],
        "temporary_bytes": programs[phase].memory_analysis().temp_size_in_bytes}
        for phase in programs}
    result = {"model": config.model.name, "batch_size": config.batch_size, "dtype": config.dtype,
              "device": f"{run.mesh.size} x {jax.devices()[0].device_kind}", "phases": rows,
              "decoder": jpeg.decoder(), **time_input(run, input_batches),
              "peak_memory_bytes": machine.peak_memory()}
    if against:
        result["against"] = compare_with_timm(run, programs, rounds, steps)
    return result


def report(result: dict, text: str, out: str) -> None:
    """Prints a benchmark's `text` and stores its result as JSON in the file `out`, "" for none."""
    print(text)
    if out:
        disk.write_json(Path(out), result)


def table(result: dict) -> str:
    """The result of a benchmark as lines of text."""
    lines = [f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, "
             f"{result['device']}",
             f"{'phase':24}{'ms/step':>10}{'of last':>9}{'MACs of last':>14}{'images/s':>10}"
             f"{'with input':>12}{'waiting':>9}{'idle':>7}{'GFLOP/s':>10}{'peak':>7}"
             f"{'temp GiB':>10}{'compile s':>11}"]
    for name, row in result["phases"].items():
        share = row["share_of_peak"]
        lines.append(
            f"{name:24}{1000 * row['step_seconds']:10.1f}{100 * row['relative_time']:8.1f}%"
            f"{100 * row['relative_macs']:13.1f}%{row['images_per_second']:10.0f}"
            f"{row['with_input_images_per_second']:12.0f}{100 * row['waiting_share']:8.1f}%"
            f"{100 * row['idle_share']:6.1f}%{row['flops_per_second'] / 1e9:10.0f}"
            f"{'-' if share is None else f'{100 * share:.1f}%':>7}"
            f"{row['temporary_bytes'] / 2 ** 30:10.2f}{row['compile_seconds']:11.1f}")
    ratio = result["input_over_pillow"]
    pillow = f", {ratio:.2f} of Pillow's bare decode + crop + resize" if ratio else ""
    lines.append(f"input alone: {result['input_images_per_second']:.0f} images/s, "
                 f"{result['input_images_per_second_and_core']:.0f} a core{pillow} (JPEG: "
                 f"{result['decoder']}); peak memory "
                 f"{result['peak_memory_bytes'] / 2 ** 30:.2f} GiB")
    return "\n".join(lines + _timm_lines(result.get("against", {})))


def _timm_lines(against: dict) -> list[str]:
    """What a comparison with timm adds to the table: our time over timm's; below 1 ours is less."""
    lines = [f"{name:24}{row['ratio']:.2f} of its {against['clock']} time ({row['least']:.2f} to "
             f"{row['largest']:.2f}): {row['seconds']:.3f} s, {row['timm_seconds']:.3f} s"
             for name, row in against.items() if "/ timm" in name]
    return lines + [f"timm {way}: {why}" for way, why in against.get("failed", {}).items()]
