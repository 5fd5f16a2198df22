"""What a config value may be: ranges for the annotations of the functions that read configs.

A group of a config is the keyword-only arguments of one function, so its schema is that function's
signature: `lr: Positive` says type and range, `Literal["a", "b"]` says choices. `config.check`
reads both.
"""
import math
from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """From `low` to `high`; `above` leaves out `low` itself, `below` leaves out `high`."""
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """True where `value` is finite and inside."""
        return (math.isfinite(value)
                and (self.low < value if self.above else self.low <= value)
                and (value < self.high if self.below else value <= self.high))

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'below' if self.below else 'at most'} {self.high:g}")
        return " and ".join(parts) or "finite"


Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
# a probability of dropping: 1 would drop everything
Rate = Annotated[float, Range(0, 1, below=True)]
Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
