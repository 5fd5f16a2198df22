"""Programs timed in turns, so that their ratios stand whatever else the machine does."""
from collections.abc import Callable, Hashable
import time
from typing import Any

import jax


def in_turns(programs: dict[Hashable, Callable[[], Any]], rounds: int, steps: int = 1,
             clock: Callable[[], float] = time.perf_counter) -> dict[Hashable, list[float]]:
    """Seconds of a call of each program in every round, `steps` calls at a time, after a round that
    compiles."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, program in programs.items():
            begin = clock()
            for _ in range(steps if turn else 1):
                jax.block_until_ready(program())
            if turn:
                seconds[name].append((clock() - begin) / steps)
    return seconds


def busy_clock() -> Callable[[], float]:
    """What to time a device's work by: on the CPU the process's own time, which other programs
    hardly disturb, else wall time. Seconds."""
    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter
