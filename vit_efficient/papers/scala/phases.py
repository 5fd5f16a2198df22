"""Scala's warm-up: the full net alone, then all four (the authors' `full_warm_epoch`).

The objective reads the phase's word (FULL) and then has no narrower nets to draw; the two phases
are two compiled programs, of which the first is a third of the second.
"""
from vit_efficient.seams.phases import Length, Phase, Phases, plain_position
from vit_efficient.settings.values import NonNegative

FULL = "full net"


def full_net_first(length: Length, model, *, full_epochs: NonNegative = 10.0) -> Phases:
    """The first `full_epochs` epochs train only the full net."""
    if not full_epochs < length.epochs:
        raise ValueError(f"phases.full_epochs = {full_epochs:g}: must be below epochs = "
                         f"{length.epochs:g}")
    begin = round(full_epochs * length.steps_per_epoch)
    return Phases(length.total, lambda step: Phase(objective=FULL) if step < begin else Phase(),
                  plain_position(length))


VARIANTS = {"full_net_first": full_net_first}
