"""Which widths a step of Scala's training takes (stable sampling) and an evaluation scores."""
from collections.abc import Callable

import jax


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


def every_width(forward: Callable, params: dict, fixed: dict, images: jax.Array,
                ratios: tuple[float, ...] | None = None) -> dict[str, jax.Array]:
    """The predictions of the nets of widths `ratios` (`None`: all of the model's), `width0.25` and
    so on; the last one's are also the model's own."""
    ratios = ratios or forward.model.ratios
    scored = {f"width{ratio:g}": forward(params, fixed, images, None, ratio=ratio)[0]
              for ratio in ratios}
    return {"": scored[f"width{ratios[-1]:g}"]} | scored
