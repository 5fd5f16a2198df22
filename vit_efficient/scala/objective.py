"""Scala's widths in an evaluation."""
from collections.abc import Callable

import jax

from vit_efficient.limits import Fraction, Rate
from vit_efficient.objective import Objective, supervised
from vit_efficient.phases import Phase


def separate(forward: Callable, phase: Phase, teacher: Callable | None, *,
             label_smoothing: Rate = 0.1,
             ratios: tuple[Fraction, ...] = (0.25, 0.5, 0.75, 1.0)) -> Objective:
    """The widest net alone learns (the paper's separate training), every width in `ratios` is
    scored: `width0.25` and so on, and the last of them as the model's own prediction."""
    def predictions(forward, params, fixed, images) -> dict[str, jax.Array]:
        scored = {f"width{ratio:g}": forward(params, fixed, images, None, ratio=ratio)[0]
                  for ratio in ratios}
        return {"": scored[f"width{ratios[-1]:g}"]} | scored
    made = supervised(forward, phase, teacher, label_smoothing=label_smoothing)
    return made._replace(predictions=predictions, needs=("ratio",))


VARIANTS = {"separate": separate}
