"""Progressive tokenization: coarse tokens first, all tokens later, one set of weights.

As-ViT (ICLR 2022, arXiv 2202.11921), whose trainer was not published: "figure" is read off the
figure of the authors' README, the boundaries of the other schedules are a reconstruction.
"""
import math
from typing import Literal

from vit_efficient.papers.asvit.models import auto_dilation
from vit_efficient.seams.phases import Length, Phase, Phases, plain_position
from vit_efficient.settings.values import Count, NonNegative, nearest

# Fractions of the epochs at which strides 8 and 4 begin: 40k and 70k of 300, k = 1 to 3.
SCHEDULES = {"off": None, "p18": (2 / 15, 7 / 30), "p37": (4 / 15, 7 / 15), "p56": (2 / 5, 7 / 10),
             "figure": (4 / 15, 11 / 25)}


def tokenization(epochs: float, schedule: str | tuple) -> tuple[tuple[float, int, int | None], ...]:
    """The phases of a run, by name or as an own list: `(first epoch, stride, dilation or None)`.

    Boundaries are whole epochs, rounded half up; an own list's stand as given. ValueError for an
    unknown name, too few epochs, or first epochs that do not start at 0 and increase.
    """
    key = f"phases.schedule = {schedule}"
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"{key}: {nearest(schedule, SCHEDULES)}, "
                             "or ((first epoch, stride, dilation), ...)")
        if not (fractions := SCHEDULES[schedule]):
            return (0, 4, None),
        middle, fine = (math.floor(fraction * epochs + 0.5 + 1e-9) for fraction in fractions)
        if not 0 < middle < fine < epochs:
            raise ValueError(
                f"{key}: {epochs:g} epochs are too few for its three phases, the switches would be "
                f"after epochs {middle} and {fine}; use \"off\" or more epochs")
        return (0, 16, None), (middle, 8, None), (fine, 4, None)
    try:
        phases = tuple((first, int(stride), dilation) for first, stride, dilation in schedule)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: must be a name or "
                         "((first epoch, stride, dilation or None), ...)") from None
    firsts = [first for first, _, _ in phases]
    rising = all(a < b for a, b in zip(firsts, firsts[1:]))
    if not phases or firsts[0] != 0 or not rising or firsts[-1] >= epochs:
        raise ValueError(f"{key}: first epochs must start at 0, increase, "
                         f"and stay below the {epochs:g} epochs")
    return phases


def check(phases: tuple, key: str, image_size: int, coarse_end: bool) -> None:
    """Raises ValueError for a stride or dilation that cannot be, or an end not at (4, 1)."""
    for _, stride, dilation in phases:
        if stride < 4 or stride % 4 or image_size % stride:
            allowed = [s for s in range(4, image_size + 1, 4) if image_size % s == 0]
            raise ValueError(f"{key}: stride {stride} must be a multiple of 4 that divides "
                             f"data.image_size = {image_size}; allowed: {allowed}")
        if dilation is not None and not (isinstance(dilation, int) and dilation >= 1):
            raise ValueError(f"{key}: dilation {dilation} must be a whole number of at least 1, "
                             "or None")
    if (phases[-1][1] != 4 or phases[-1][2] not in (None, 1)) and not coarse_end:
        raise ValueError(f"{key}: ends at stride {phases[-1][1]}; the last phase must be the "
                         "official model (stride 4, dilation 1), or set phases.coarse_end = True")


def progressive(length: Length, model, *, coarse_end: bool = False,
                schedule: Literal["off", "p18", "p37", "p56", "figure"]
                | tuple[tuple[NonNegative, Count, Count | None], ...] = "p37") -> Phases:
    """Phases of stride and dilation over epochs; every switch falls on the first step of an epoch.

    `schedule` is "off", "p18", "p37", "p56", "figure" (fractions of the epochs) or `((first epoch,
    stride, dilation or None for the auto rule), ...)`; `coarse_end` allows a list that ends coarse.
    """
    if not {"stride", "dilation"} <= set(model.knobs):
        raise ValueError("phases.name = progressive: needs a model whose stem has a stride and a "
                         "dilation, as asvit; phases.name = constant goes with every model")
    phases = tokenization(length.epochs, schedule)
    check(phases, f"phases.schedule = {schedule}", model.image_size, coarse_end)
    kernel = model.arch.kernels[0]
    begins = [round(first * length.steps_per_epoch) for first, _, _ in phases]
    settings = [
        Phase(model=(("stride", stride), ("dilation", dilation or auto_dilation(kernel, stride))))
        for _, stride, dilation in phases]

    def phase_at(step: int) -> Phase:
        return settings[sum(begin <= step for begin in begins) - 1]
    return Phases(length.total, phase_at, plain_position(length))


VARIANTS = {"progressive": progressive}
