"""The phase seam: a step's static setting and its examples. Every phase is one compiled program.

A paper's `phases.py` holds a table `VARIANTS` of makers by name,

    make(length: Length, model: Model, *, epochs: NonNegative = 1.0, ...) -> Phases

whose keyword-only arguments are the keys of the config group `phases`. An example, whole: a warm-up
in which the objective is told "warmup".

    def warmed(length, model, *, epochs: NonNegative = 1.0):
        first = round(epochs * length.steps_per_epoch)
        phase_at = lambda step: Phase(objective="warmup" if step < first else "train")
        return Phases(length.total, phase_at, plain_position(length))

    VARIANTS = {"warmed": warmed}

The loop, the loader, the plan and the benchmark ask the same two functions of the step number, so a
resumed run is in the right phase by itself. ("Schedule" means the learning rate.)
"""
from collections.abc import Callable
from typing import NamedTuple


class Phase(NamedTuple):
    """A static setting, hashable.

    `model` holds the model's knobs and `data` those of the batch (`image_size`), as tuples of (key,
    value); `objective` is a word that the objective reads. `topology` is set by the run, from
    `Sparsity.moves_at`: the step ends with an update of the masks.
    """
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
    """A run's timeline: `total` steps, `phase_at(step)` and `position(step)` for a Python int, both
    picklable (worker processes ask them); `scalars`: functions of the traced step, given to the
    forward function as keywords, as a falling temperature."""
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

    def with_topology(self, moves_at: Callable[[int], bool]) -> "Phases":
        """The same timeline, in which the steps at which masks move are phases of their own."""
        plain = self.phase_at
        return self._replace(phase_at=lambda step: plain(step)._replace(topology=moves_at(step)))


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
