"""What a run does about records that hold no whole image: a budget, and what stands in for them.

A source raises `BadImage`; `data/batches.py` takes one of the `substitutes` in training and leaves
the example out in an evaluation; `data/loader.py` hands what a batch met to a `BadRecords`, which
ends the run where it is more than `data.max_bad_records`. Processes count alone while they run and
together at each `settle`, so that no step waits for another host.
"""
from collections.abc import Iterator, Mapping
import logging

import jax
from jax.experimental import multihost_utils
import numpy as np

log = logging.getLogger(__name__)


class BadImage(ValueError):
    """Bytes that are not one whole image; the message names them."""


def substitutes(example: int, length: int) -> Iterator[int]:
    """The examples to take for `example`, itself first, then the next ones of the source: the same
    on every host and in every run, since nothing but the two numbers decides."""
    return ((example + k) % length for k in range(length))


class BadRecords:
    """The distinct bad records that a run has met since it was started, at most `allowed`."""

    def __init__(self, allowed: int, source: str):
        self.allowed, self._source, self._met = allowed, source, set()

    def meet(self, found: Mapping[int, str]) -> None:
        """Takes in what a batch of this process met, why by example, and logs each record once;
        raises ValueError where this process alone has met too many."""
        for example, why in found.items():
            if example in self._met:
                continue
            self._met.add(example)
            if len(self._met) > self.allowed:
                raise ValueError(f"{why}; {self._advice()}")
            log.warning("%s: bad record %d of the %d that data.max_bad_records allows", why,
                            len(self._met), self.allowed)

    def settle(self) -> None:
        """Holds what all processes have met against the budget; ValueError on each of them where it
        is too much. A barrier: every process calls it at the same place."""
        if jax.process_count() == 1 or not self.allowed:
            return
        met = np.array(sorted(tuple(self._met)), np.int32)   # a copy: a thread may be adding to it
        most = int(multihost_utils.process_allgather(np.int32(len(met))).max())
        mine = np.pad(met, (0, most - len(met)), constant_values=-1)
        together = np.unique(multihost_utils.process_allgather(mine)) if most else met
        together = together[together >= 0]
        if len(together) > self.allowed:
            raise ValueError(f"{self._source}: the processes together met {len(together)} bad "
                             f"records, examples {', '.join(map(str, together[:10]))}"
                             f"{', ...' if together[10:].size else ''}; {self._advice()}")

    def _advice(self) -> str:
        return (f"data.max_bad_records = {self.allowed}: repair or remove what cannot be read, or "
                "allow more")
