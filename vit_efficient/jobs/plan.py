"""The job `plan`: what a run would take on a TPU pod that is not there.

    python -m vit_efficient.main --config=asvit:base --job=plan --topology=v5e:4x4 [--price=1.2]

Its real steps are compiled ahead of time by libtpu, which needs no TPU; the compiler's own
estimates, read by `measure/hlo.py`, and the makers' numbers of `measure/chips.py` become hours,
memory and the largest batch. `plan` is the job; below it stand the batch search, what is computed
of a pod and of a phase, and the table and picture.
"""
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
import math
import os
from pathlib import Path
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from vit_efficient import disk
from vit_efficient.data.order import slot_count
from vit_efficient.data.sources import Data, open_data
from vit_efficient.engine import sharding
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.run import Run
from vit_efficient.measure import hlo
from vit_efficient.measure.chips import Chip, chip_of
from vit_efficient.measure.macs import multiply_adds
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Count, NonNegative

# Training images and classes of the data sets that are known by name (imagenette: the default of
# TensorFlow Datasets, which is the second version's split).
KNOWN = {"digits": (1_438, 10), "cifar10": (50_000, 10), "cifar100": (50_000, 100),
         "imagenette": (9_469, 10), "imagenet2012": (1_281_167, 1000),
         "i_naturalist2018": (437_513, 8142), "i_naturalist2021": (2_686_843, 10_000)}
UNKNOWN = (
    "the input pipeline: whether hosts feed the chips (--job=benchmark on such a host)",
    "evaluation, checkpoints, starting and compiling",
    "stalls: the estimate is the compiler's sum over operations, each as if alone and its operands "
    "there; collectives that nothing hides come on top, at least the network's floor",
    "prices: --price is yours, of one chip for an hour")


def plan(config: ConfigDict, workdir: Path, *, topology: tuple[str, ...],
         price: NonNegative = 0.0, examples: Count | None = None, num_classes: Count | None = None,
         largest: bool = True, out: str = "") -> dict:
    """Compiles every phase's training step for each pod of `topology` and says what it costs;
    prints a table, returns it, stores it as JSON in `out` and a picture beside it.

    Args:
      topology: pods by chip and sides: v5e:4x4,v5p:4x4x4 (v4, v5e, v5p, v6e).
      price: of one chip for an hour, in any currency; 0 leaves the cost out.
      examples, num_classes: of the training set, where neither its name nor its folder tells them.
      largest: search for the largest batch that fits as well, in up to five more compilations.
      out: by default WORKDIR/plan.json.
    Raises:
      ValueError: libtpu is not installed; a pod that does not exist; a batch or a mesh that does
        not fit the pod; a data set of unknown size.
    """
    chips = {name: chip_of(name) for name in topology}
    if find_spec("libtpu") is None:
        raise ValueError("--job=plan needs the TPU's compiler, though no TPU: pip install libtpu "
                         "(Linux)")
    data = _data(config, examples, num_classes)
    runs = {name: assemble(config, data, _mesh(config, name, chip))
            for name, chip in chips.items()}
    pods = {name: _plan_pod(run, chips[name], largest) for name, run in runs.items()}
    for pod in pods.values():
        if pod["hours"] is not None:
            pod["chip_hours"] = pod["hours"] * pod["devices"]
            pod["cost"] = pod["chip_hours"] * price
    result = {"model": config.model.name, "batch_size": config.batch_size, "dtype": config.dtype,
              "epochs": config.epochs, "examples": len(data.train), "price": price, "pods": pods,
              "unknown": UNKNOWN}
    print(table(result))
    file = Path(out or workdir / "plan.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    disk.write_json(file, result)
    draw(result, file.with_suffix(".png"))
    return result


def floors(chip: Chip, devices: int, macs: float, cost: hlo.Cost) -> dict[str, float]:
    """Seconds that a step takes at the least (a roofline): for its `macs` multiply-adds, of all
    devices, at their peak, for a device's bytes at its memory's bandwidth, for what it sends at
    its links'."""
    return {"compute": 2 * macs / (devices * chip.peak),
            "memory": cost.bytes_moved / chip.bandwidth,
            "network": cost.bytes_sent / chip.network}


def batch_unit(size: int, parts: int) -> int:
    """What every batch that is tried is a multiple of, as `size` is: the `parts` (devices times
    slices) times up to 8 of a part's images, which pairs to mix, groups and tiles rest on."""
    return parts * math.gcd(size // parts, 8)


def largest_batch(used: Callable[[int], int | None], size: int, unit: int, memory: int,
                  trials: int = 6) -> int | None:
    """The largest batch that was seen to fit, a multiple of `unit`; None where none was.

    `used(size)` is a device's bytes, or None where the compiler finds no room. After `size` and its
    double or half, a trial lies where the line through the last two reaches `memory`, or midway. It
    ends a sixteenth below a size that does not fit, or after `trials`.
    """
    fits: list[tuple[int, int]] = []                    # (size in units, bytes), ascending
    above, count = None, max(size // unit, 1)
    for _ in range(trials):
        need = used(count * unit)
        if need is None:
            above = count
        else:
            fits.append((count, need))
        below = fits[-1][0] if fits else 0
        if above is not None and above - below <= max(1, below // 16):
            break
        count = _next_trial(fits, above, memory)
    return below * unit or None


def _next_trial(fits: list[tuple[int, int]], above: int | None, memory: int) -> int:
    """Between the largest size that fits and `above`, the smallest that does not."""
    below = fits[-1][0] if fits else 0
    guess = 2 * below
    if len(fits) > 1:
        (a, bytes_a), (b, bytes_b) = fits[-2:]
        guess = min(b + int((memory - bytes_b) * (b - a) / max(bytes_b - bytes_a, 1)), 4 * b)
    if above is not None and not below < guess < above:
        guess = (below + above) // 2
    return max(guess, below + 1)


def _data(config: ConfigDict, examples: int | None, num_classes: int | None) -> Data:
    """The numbers of the training set: from the flags, the table, or the data themselves."""
    name = (config.data.get("name") or config.data.source).partition(":")[0]
    known = KNOWN.get(name, (None, None))
    count, kinds = examples or known[0], num_classes or known[1]
    if count is None or kinds is None:
        try:
            return open_data(**config.data)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"--job=plan needs no images, but the size of the training set: give "
                             f"--examples and --num_classes ({error})") from error
    absent = _Absent(count, kinds, config.data.frames)
    return Data(train=absent, val=absent, num_classes=kinds, image_size=config.data.image_size)


class _Absent:
    """A data set of which only the length and the number of classes are known."""

    def __init__(self, count: int, classes: int, frames: int | None):
        self._count, self.classes = count, tuple(map(str, range(classes)))
        self.frames = frames

    def __len__(self) -> int:
        return self._count


def _mesh(config: ConfigDict, topology: str, chip: Chip) -> jax.sharding.Mesh:
    """The config's mesh on the devices of a pod that is described to the compiler."""
    # libtpu asks the cloud's metadata service where it runs, and lets one process in at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies
    options = {"chip_config_name": chip.config} if chip.config else {}
    try:
        pod = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:
        raise ValueError(f"--topology={topology}: the TPU compiler knows no such pod "
                         f"({str(error).splitlines()[0]})") from error
    return sharding.make_mesh(pod.devices, **config.mesh)


def _plan_pod(run: Run, chip: Chip, largest: bool) -> dict[str, Any]:
    """The plan of one pod: its phases in order, the whole run, the largest batch."""
    steps = Counter(run.phases.phase_at(step) for step in range(run.phases.total))
    rows = {}
    for phase, first in run.phases.distinct().items():
        size = slot_count(run.config.batch_size, run.phases.position(first).crops)
        rows[phase] = {"phase": phase.label, "steps": steps[phase],
                       "epochs": steps[phase] / run.length.steps_per_epoch,
                       **_plan_phase(run, phase, size, chip)}
    fits = all(row["fits"] for row in rows.values())
    hours = (sum(row["steps"] * row["step_seconds"] for row in rows.values()) / 3600
             if fits else None)
    heaviest = max(rows, key=lambda phase: rows[phase]["device_bytes"] or float("inf"))
    batch = None
    if largest:
        asked, parts = run.config.batch_size, run.mesh.size * run.config.step.accumulate
        given = {asked: rows[heaviest]["device_bytes"]}
        used = lambda size: (given[size] if size in given else _device_bytes(run, heaviest, size))
        batch = largest_batch(used, asked, batch_unit(asked, parts), chip.memory)
    return {"devices": run.mesh.size, "mesh": dict(run.mesh.shape), "chip": chip._asdict(),
            "phases": list(rows.values()), "hours": hours, "largest_batch": batch}


def _plan_phase(run: Run, phase: Phase, size: int, chip: Chip) -> dict[str, Any]:
    """What a step of `size` images costs in `phase`."""
    traced = run.traced_step(phase, size)
    macs = multiply_adds(traced.jaxpr)
    begin = time.perf_counter()
    compiled = _compile(traced)
    row = {"macs": macs, "fits": compiled is not None, "device_bytes": None,
           "compile_seconds": time.perf_counter() - begin}
    if compiled is None:
        return row
    memory, cost = compiled.memory_analysis(), hlo.cost(compiled.as_text())
    floor = floors(chip, run.mesh.size, macs, cost)
    estimate = cost.cycles / chip.clock
    step = max(estimate, *floor.values())
    return row | {
        "device_bytes": _total(memory), "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes, "bytes_moved": cost.bytes_moved,
        "collectives": {kind: {"count": count, "bytes": sent}
                        for kind, (count, sent) in cost.collectives.items()},
        "bytes_sent": cost.bytes_sent, "cycles": cost.cycles, "estimate_seconds": estimate,
        "floor_seconds": floor, "step_seconds": step, "share_of_peak": floor["compute"] / step,
        "images_per_second": size / step, "epoch_seconds": step * run.length.steps_per_epoch}


def _compile(traced) -> jax.stages.Compiled | None:
    """The compiled step, or None where the compiler finds no room for it."""
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _device_bytes(run: Run, phase: Phase, size: int) -> int | None:
    """Bytes of a device that a step of `size` images needs; None where there is no room."""
    compiled = _compile(run.traced_step(phase, size))
    return compiled and _total(compiled.memory_analysis())


def _total(memory) -> int:
    """Arguments, results (donated ones once), temporaries and the program itself."""
    return (memory.argument_size_in_bytes + memory.output_size_in_bytes
            - memory.alias_size_in_bytes + memory.temp_size_in_bytes
            + memory.generated_code_size_in_bytes)


def table(result: dict) -> str:
    """The result of a plan as lines of text."""
    lines = [f"{result['model']}, batch {result['batch_size']}, {result['dtype']}, "
             f"{result['epochs']:g} epochs of {result['examples']:,} images"]
    for name, pod in result["pods"].items():
        lines += ["", f"{name}: {pod['devices']} chips, mesh {pod['mesh']}",
                  f"{'phase':26}{'steps':>8}{'GMACs':>10}{'GiB of ' + _gib(pod):>12}"
                  f"{'GB moved':>10}{'GB sent':>9}{'floor ms':>10}{'est. ms':>9}{'peak':>7}"
                  f"{'images/s':>10}{'epoch min':>11}"]
        lines += [_line(row) for row in pod["phases"]]
        if pod["hours"] is not None:
            money = f", {pod['cost']:,.2f} at {result['price']:g}" if result["price"] else ""
            lines.append(f"the whole run: {pod['hours']:.2f} hours, {pod['chip_hours']:.1f} "
                         f"chip-hours{money}")
        if pod["largest_batch"]:
            lines.append(f"largest batch that fits: {pod['largest_batch']}")
    return "\n".join([*lines, "", "Not in these numbers:", *(f"  {why}" for why in UNKNOWN)])


def _gib(pod: dict) -> str:
    """The chip's memory in GiB."""
    return f"{pod['chip']['memory'] / 2 ** 30:.0f}"


def _line(row: dict) -> str:
    """A phase's row of the table."""
    start = f"{row['phase']:26}{row['steps']:8}{row['macs'] / 1e9:10.0f}"
    if not row["fits"]:
        return f"{start}   does not fit"
    return (f"{start}{row['device_bytes'] / 2 ** 30:12.2f}{row['bytes_moved'] / 1e9:10.2f}"
            f"{row['bytes_sent'] / 1e9:9.3f}{1000 * max(row['floor_seconds'].values()):10.2f}"
            f"{1000 * row['estimate_seconds']:9.2f}{100 * row['share_of_peak']:6.1f}%"
            f"{row['images_per_second']:10.0f}{row['epoch_seconds'] / 60:11.2f}")


def draw(result: dict, file: Path) -> None:
    """A picture of the run's time by phase: a bar for each pod, its phases from left to right."""
    from matplotlib.figure import Figure
    pods = {name: pod for name, pod in result["pods"].items() if pod["hours"] is not None}
    figure = Figure(figsize=(9, 1.9 + 0.7 * len(pods)), layout="constrained")
    axes, longest = figure.subplots(), max((pod["hours"] for pod in pods.values()), default=0.0)
    for y, pod in enumerate(pods.values()):
        left = 0.0
        for i, row in enumerate(pod["phases"]):
            hours = row["steps"] * row["step_seconds"] / 3600
            axes.barh(y, hours, left=left, color=f"C{i}", edgecolor="white",
                      label="" if y else row["phase"])
            if hours > longest / 12:                    # wide enough for its text
                axes.text(left + hours / 2, y, f"{1000 * row['step_seconds']:.1f} ms", ha="center",
                          va="center", fontsize=8)
            left += hours
    if pods:
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    axes.set_yticks(range(len(pods)), [f"{name}\n{pod['hours']:.2f} h" for name, pod in
                                       pods.items()])
    axes.invert_yaxis()
    axes.set_xlabel("hours of steps, by the compiler's estimate")
    axes.set_title(f"{result['model']}, batch {result['batch_size']}")
    figure.savefig(file, dpi=120)
