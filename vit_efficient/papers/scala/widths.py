"""Which widths a step of Scala's training takes (stable sampling) and an evaluation scores."""
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def check_widths_to_train(name: str, model) -> None:
    """Raises ValueError where objective `name` cannot tell which widths of `model` to train."""
    if "ratio" not in model.knobs:
        raise ValueError(f"objective.name = {name}: needs a model of many widths, with the knob "
                         "ratio")
    if model.granularity is None:
        raise ValueError(f"objective.name = {name}: model.granularity = None leaves open which "
                         "widths to train")


def width_name(ratio: float) -> str:
    """What stands for a width in the names of metrics and parameters: `width0.25`."""
    return f"width{ratio:g}"


def drawn(count: int) -> tuple[range, range]:
    """Of `count` widths, smallest first: the places that the upper and the lower intermediate net
    are drawn from, uniformly (stable sampling). The middle belongs to the upper ones.

    Where that leaves no lower one though there are two between the ends (X = 4, at which the
    authors' loop stops with an error), those below the middle are the lower ones. With one width
    between the ends there is no lower net, with none no upper one either.
    """
    middle = max((count - 1) // 2, 1)
    if middle == 1 and count > 3:
        middle = count // 2
    return range(middle, count - 1), range(1, middle)


def narrower(count: int) -> dict[str, range]:
    """The nets beside the full one, largest first, by the names of their losses: the places that a
    net may have among `count` widths."""
    upper, lower = drawn(count)
    nets = {"3q": upper, "2q": lower, "1q": range(min(count, 1))}
    return {name: places for name, places in nets.items() if places}


def draw(key: jax.Array, count: int) -> dict[str, tuple[range, jax.Array]]:
    """`narrower`, with the one of a net's places that `key` draws, int32 []."""
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("3q", "2q", "1q"))}
    return {name: (places, jax.random.randint(keys[name], (), 0, len(places)))
            for name, places in narrower(count).items()}


def passes(largest: float, ratios: tuple[float, ...]) -> tuple[tuple[dict, float], ...]:
    """An objective's `passes`: each width and how often a step trains it, on average."""
    places = [(i, 1 / len(places)) for places in narrower(len(ratios)).values() for i in places]
    return (({"ratio": largest}, 1.0), *(({"ratio": ratios[i]}, often) for i, often in places))


class Learnt(NamedTuple):
    """A net's loss in a step, float32 [], and what its `learn` tells beside."""
    loss: jax.Array
    more: Any


def narrower_gradients(learn: Callable, ratios: tuple[float, ...], keys: tuple[jax.Array, ...],
                       params: dict, fixed: dict, images: jax.Array, teaching: jax.Array,
                       total: dict, *, progressive: bool) -> tuple[dict[str, Learnt], dict]:
    """The nets of a step beside the full one, each taught by what another one says, which gets no
    gradient: what each learnt by the name of its loss, and the sum of all gradients.

    `learn(ratio, params, fixed, images, teaching, key) -> (loss, (said, more))` is a net of width
    `ratio`. The gradient is taken inside each branch of the switch over the widths, and a net
    begins when the one before it has ended: a step needs the memory of one net.

    Args:
      ratios: the widths to draw from, () for no net at all.
      keys: one that draws the widths, and one for each net.
      teaching: what the full net says, or the teacher.
      total: the gradients of the full net.
      progressive: each net teaches the next one.
    """
    learnt, nets = {}, draw(keys[0], len(ratios)) if ratios else {}
    for (name, (places, chosen)), key in zip(nets.items(), keys[1:]):
        images = after(total, images)
        branches = [jax.value_and_grad(partial(learn, ratios[i]), has_aux=True) for i in places]
        (loss, (said, more)), grads = jax.lax.switch(chosen, branches, params, fixed, images,
                                                     teaching, key)
        total = jax.tree.map(jnp.add, total, grads)
        learnt[name] = Learnt(loss, more)
        teaching = said if progressive else teaching
    return learnt, total


def after(done: Any, x: jax.Array) -> jax.Array:
    """`x`, from which nothing is computed before all arrays of `done` are there.

    Left to themselves XLA's schedulers begin the next net's forward pass before the last one's
    backward pass has ended, and keep the activations of all. On a CPU a barrier is dropped before
    scheduling: there a zero made of `done` is added to `x`.
    """
    def tied(done, x):
        return x + sum(0 * leaf.ravel()[0] for leaf in jax.tree.leaves(done)).astype(x.dtype)

    def barred(done, x):
        return jax.lax.optimization_barrier((done, x))[1]
    return jax.lax.platform_dependent(done, x, cpu=tied, default=barred)


def every_width(forward: Callable, params: dict, fixed: dict, images: jax.Array,
                ratios: tuple[float, ...] | None = None) -> dict[str, jax.Array]:
    """The predictions of the nets of widths `ratios` (`None`: all of the model's), `width0.25` and
    so on; the last one's are also the model's own."""
    ratios = ratios or forward.model.ratios
    scored = {width_name(ratio): forward(params, fixed, images, None, ratio=ratio)[0]
              for ratio in ratios}
    return {"": scored[width_name(ratios[-1])]} | scored
