"""What a run does about records that hold no whole image: a budget, and what stands in for them."""
from absl import logging

from vit_efficient.data.images import BadImage


def substitutes(example: int, length: int):
    """The examples to take for `example`, itself first, then the next ones of the source: the same
    on every host and in every run, since nothing but the two numbers decides."""
    return ((example + k) % length for k in range(length))


class BadRecords:
    """The distinct bad records that a process has met, at most `allowed` of them."""

    def __init__(self, allowed: int):
        self.allowed, self._met = allowed, set()

    def meet(self, example: int, error: BadImage) -> None:
        """Logs a record once; raises ValueError where it is one too many."""
        if example in self._met:
            return
        self._met.add(example)
        if len(self._met) > self.allowed:
            raise ValueError(f"{error}; data.max_bad_records = {self.allowed}: repair or remove "
                             "what cannot be read, or allow more") from error
        logging.warning("%s: bad record %d of the %d that data.max_bad_records allows", error,
                        len(self._met), self.allowed)
