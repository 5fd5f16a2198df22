"""The phase seam: a step's static setting and its examples. Every phase is one compiled program.

The loop, the loader, the plan and the benchmark ask the same two functions of the step number, so a
resumed run is in the right phase by itself. ("Schedule" means the learning rate.)
"""
from collections.abc import Callable
from typing import NamedTuple


class Phase(NamedTuple):
    """A static setting, hashable: tuples of (key, value) for the model's knobs and the data."""
    model: tuple = ()
    objective: str = "train"
    data: tuple = ()
    topology: bool = False

    @property
    def label(self) -> str:
        """In words: `stride 16, dilation 5`; another one for every phase."""
        words = [f"{name} {value}" for name, value in (*self.model, *self.data)]
        words += [self.objective] * (self.objective != "train") + ["new masks"] * self.topology
        return ", ".join(words) or "the whole run"


class Position(NamedTuple):
    """A step's examples: those of pass `epoch` from its `first` entry on, `crops` times
    (crop-major). The entries of a pass are its shuffled examples, each `repeats` times in a row."""
    epoch: int
    first: int
    crops: int = 1
    repeats: int = 1


class Length(NamedTuple):
    """A run in examples and epochs; an epoch's steps leave out an incomplete last batch.

    An epoch is `examples` images also with `repeats` (repeated augmentation): it then meets only
    `examples / repeats` different ones.
    """
    examples: int
    batch_size: int
    epochs: float
    repeats: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return self.examples // self.batch_size

    @property
    def total(self) -> int:
        """Steps of the whole run, rounded half up."""
        return int(self.epochs * self.steps_per_epoch + 0.5)


class Phases(NamedTuple):
    """`scalars`: functions of the traced step, given to the forward function as keywords."""
    total: int
    phase_at: Callable[[int], Phase]
    position: Callable[[int], Position]
    scalars: dict[str, Callable] = {}

    def distinct(self, start: int = 0) -> dict[Phase, int]:
        """Every phase from step `start` on and the first step that is in it, in order."""
        first: dict[Phase, int] = {}
        for step in range(start, self.total):
            first.setdefault(self.phase_at(step), step)
        return first


def plain_position(length: Length) -> Callable[[int], Position]:
    """One pass after the other; every example once a pass, or some of them `repeats` times."""
    def position(step: int) -> Position:
        epoch, inside = divmod(step, length.steps_per_epoch)
        return Position(epoch, inside * length.batch_size, repeats=length.repeats)
    return position


def constant(length: Length, model) -> Phases:
    """One phase from the first step to the last."""
    return Phases(length.total, lambda step: Phase(), plain_position(length))


VARIANTS = {"constant": constant}
