"""Scala's speed beside what it is made of: each width's evaluation pass beside the widest one's,
and the nets of a training step beside plain DeiTs of their widths.

Scala's benchmark and evaluation jobs call it. Both measurements take turns in one process, so that
their ratios stand whatever else the machine does; both are on noise, since no time depends on what
the images show. What is compared is named in each docstring: a ratio above 1 is time lost to
sharing one set of weights.
"""
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.engine import sharding, state as states
from vit_efficient.engine.run import Run
from vit_efficient.engine.teacher import teacher_signal
from vit_efficient.measure.turns import busy_clock, in_turns
from vit_efficient.papers.scala.widths import draw
from vit_efficient.seams.objective import Forward, supervised
from vit_efficient.seams.phases import Phase


def forward_passes(run: Run, weights: dict, widths: tuple[float, ...]) -> dict[float, Callable]:
    """Of each width the evaluation pass of a batch of zeros."""
    images, forward = images_of(run, np.zeros), Forward(run.model, Phase(), {})
    programs = {ratio: jax.jit(lambda weights, images, ratio=ratio: forward(
        weights["params"], weights, images, None, ratio=ratio)[0]) for ratio in widths}
    return {ratio: partial(program, weights, images) for ratio, program in programs.items()}


def images_of(run: Run, values: Callable[[tuple[int, ...]], np.ndarray]) -> jax.Array:
    """A batch of normalised images float32 [B, S, S, 3], each device's share in its place."""
    shape = run.abstract_batch(run.config.batch_size)["image"].shape
    return jax.device_put(values(shape).astype(np.float32), sharding.batch_sharding(run.mesh))


def time_widths(run: Run, rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Of each trained width the multiply-adds and the time of an evaluation pass, as shares of the
    widest one's (median of the rounds)."""
    weights = states.weights(states.weight_fields(run.fresh_state()), "raw")
    seconds = in_turns(forward_passes(run, weights, run.model.ratios), rounds, steps, busy_clock())
    widest = run.model.ratios[-1]
    macs = {ratio: sum(run.model.macs(ratio=ratio).values()) for ratio in seconds}
    return {f"{ratio:g}": {
        "relative_macs": macs[ratio] / macs[widest],
        "relative_time": float(np.median(np.divide(each, seconds[widest]))),
        "seconds": float(np.median(each))} for ratio, each in seconds.items()}


def time_nets(run: Run, rounds: int, steps: int) -> dict[str, float]:
    """The gradients of a training step beside those of as many plain DeiTs, of the widths that the
    step draws, each with weights of its own; a teacher's pass counts on both sides.

    Returns the `ratio` of the times, median over the rounds, a draw each, its least and largest,
    and the median seconds of both.
    """
    model, phase = run.model, run.phases.phase_at(run.phases.total - 1)
    gradients = jax.jit(run.objective(phase).gradients)
    rng = np.random.default_rng(0)
    images = images_of(run, lambda shape: rng.normal(size=shape))
    labels = rng.integers(0, model.num_classes, len(images)).astype(np.int32)
    batch = {"image": images, "label": jax.device_put(labels, images.sharding)}
    state, plain, pairs = run.fresh_state(), {}, []
    fixed = {"collections": state.collections, "step": 0, **run.frozen()}
    teacher = run.teacher and partial(jax.jit(partial(
        teacher_signal, Forward(run.teacher[0], Phase(), {}), kind="logits")), fixed, batch)
    for i in range(rounds):
        key = jax.random.key(i)
        nets = draw(jax.random.split(key, 5)[0], len(model.ratios)).values()
        widths = [model.largest_ratio] + [model.ratios[places[int(at)]] for places, at in nets]
        for ratio in widths:
            if ratio not in plain:
                plain[ratio] = partial(*_gradients(model.subnet(ratio)), batch, key)
        turn = {ratio: plain[ratio] for ratio in widths}
        if teacher:
            turn["teacher"] = teacher
        turn["step"] = partial(gradients, state.params, fixed, batch, key)
        seconds = {name: each[0] for name, each in in_turns(turn, 1, steps, busy_clock()).items()}
        pairs.append((seconds.pop("step"), sum(seconds.values())))
    ours, theirs = np.array(pairs).T
    ratio = ours / theirs
    return {"ratio": float(np.median(ratio)), "least": float(ratio.min()),
            "largest": float(ratio.max()), "seconds": float(np.median(ours)),
            "deit_seconds": float(np.median(theirs))}


def _gradients(net) -> tuple[Callable, dict, dict]:
    """The plain classifier `net`'s gradients, jitted, and their first two arguments."""
    objective = supervised(Forward(net, Phase(), {}), Phase(), None)
    images = jnp.zeros((1, net.image_size, net.image_size, 3))
    collections = dict(jax.jit(net.init)(jax.random.key(0), images))
    params = collections.pop("params")
    return jax.jit(objective.gradients), params, {"collections": collections, "step": 0}


def table(result: dict) -> str:
    """What Scala adds to the table of a benchmark."""
    lines = [f"{'width':24}{'MACs':>10}{'time':>10}{'time/MACs':>12}   of an evaluation pass"]
    for ratio, row in result["widths"].items():
        macs, share = row["relative_macs"], row["relative_time"]
        lines.append(f"{ratio:24}{100 * macs:9.1f}%{100 * share:9.1f}%{share / macs:12.2f}")
    if "nets" in result:
        nets = result["nets"]
        lines.append(
            f"gradients of a step: {nets['ratio']:.2f} of plain DeiTs' of the same widths "
            f"({nets['least']:.2f} to {nets['largest']:.2f}): {nets['seconds']:.3f} s, "
            f"{nets['deit_seconds']:.3f} s")
    return "\n".join(lines)
