"""Budgeted classification: which exit an image leaves at, and thresholds for a given mean cost.

DVT (arXiv 2105.15075, section 3.3) and the authors' inference script. An image leaves at the first
exit whose confidence reaches that exit's threshold; one set of weights so has a whole curve of
accuracy over cost. All here is NumPy on two arrays, of E exits and n images,

    confidence  float32 [E, n]    larger is surer; the largest probability, unless another is asked
    hits        bool [E, n]       whether the exit's prediction is right

The jobs of this paper call `official_thresholds` and `solve`; `outcome` scores what they found.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OFFICIAL = 59           # budgets of the authors' script, q = 1/20 to 59/20
NEVER, ALWAYS = np.float32(1e8), np.float32(-1e8)   # thresholds that nobody, and everybody, reaches
CANDIDATES = 1000       # thresholds of an exit that the solver tries, order statistics
SWEEPS = 4              # of the solver over the exits where there are more than three


class Outcome(NamedTuple):
    """Of thresholds on a set: the share of images that leave at each exit, [E], the mean cost and
    the share of right answers."""
    shares: np.ndarray
    cost: float
    accuracy: float


def exit_shares(p: int, exits: int = 3) -> np.ndarray:
    """The authors' distribution of budget p: `q^k / (q + ... + q^E)`, k = 1..E, with q = p / 20;
    float32 [E]."""
    powers = (p / 20) ** np.arange(1, exits + 1, dtype=np.float64)
    return (powers / powers.sum()).astype(np.float32)


def official_thresholds(confidence: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The authors' search (`dynamic_find_threshold`): float32 [E], the last below every confidence.

    For each exit but the last, of the images that have not left yet, the `floor(n share)`-th
    largest confidence; all that reach it then leave, with ties more than asked. Where that number
    is 0, or fewer images are left, nobody leaves there. Labels are not read.
    """
    exits, n = confidence.shape
    thresholds = np.full(exits, NEVER)
    thresholds[-1] = ALWAYS
    left = np.ones(n, bool)
    for k in range(exits - 1):
        count = int(np.floor(np.float32(n) * np.float32(shares[k])))      # as there, in float32
        inside = confidence[k, left]
        if 0 < count <= inside.size:
            thresholds[k] = np.partition(inside, -count)[-count]
            left &= confidence[k] < thresholds[k]
    return thresholds


def exits_taken(confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The exit of each image, counted from 0: the first whose threshold is reached; int64 [n]."""
    return (confidence >= np.asarray(thresholds)[:, None]).argmax(0)


def outcome(confidence: np.ndarray, hits: np.ndarray, thresholds: np.ndarray,
          flops: Sequence[float]) -> Outcome:
    """What these thresholds make of a set; `flops` are the costs up to each exit, in any unit."""
    taken = exits_taken(confidence, thresholds)
    shares = np.bincount(taken, minlength=len(confidence)) / taken.size
    return Outcome(shares, float(shares @ np.asarray(flops, np.float64)),
                   float(hits[taken, np.arange(taken.size)].mean()))


def official_rows(confidence: np.ndarray) -> np.ndarray:
    """The thresholds of all official budgets, float32 [59, E]."""
    return np.stack([official_thresholds(confidence, exit_shares(p, len(confidence)))
                     for p in range(1, OFFICIAL + 1)])


def check_budgets(budgets: Sequence[float], flops: Sequence[float]) -> None:
    """ValueError for a mean cost below that of the first exit or above that of the last."""
    for budget in budgets:
        if not flops[0] <= budget <= flops[-1]:
            raise ValueError(f"--budget={budget:g}: a mean cost must be from {flops[0]:.4g}, where "
                             f"everybody leaves first, to {flops[-1]:.4g}, where nobody does")


def solve(confidence: np.ndarray, hits: np.ndarray, flops: Sequence[float],
          budgets: Sequence[float], candidates: np.ndarray | None = None) -> np.ndarray:
    """Thresholds with the most right answers on this set whose mean cost is within each budget;
    float32 [budgets, E].

    The paper maximises accuracy under a bound by a genetic algorithm, whose code was not published.
    Here the last threshold that is free is found by counting: sorted by that exit's confidence,
    every number of images to leave has a cost and a number of right answers. The one before it runs
    over order statistics. With three exits that is all; with more, every further one is improved in
    turn while the others stay.

    Args:
      candidates: rows [m, E] that are tried too, as `official_rows`: no result is worse than one of
        them whose cost is within the budget.
    """
    exits = len(confidence)
    budgets = np.asarray(budgets, np.float64)
    rows = np.empty((0, exits), np.float32) if candidates is None else candidates
    problem = _Problem(confidence, hits, np.asarray(flops, np.float64))
    best = _Best(budgets, exits)
    if exits == 2:
        problem.try_last(best, ())
        return best.thresholds
    for row in rows:
        problem.try_last(best, row[:-2])
    for _ in range(SWEEPS if exits > 3 else 1):
        before = best.right.copy()
        for k in range(exits - 2):
            tried = _order_statistics(confidence[k], rows[:, k])
            for start in np.unique(best.thresholds[:, :-2], axis=0) if exits > 3 else [()]:
                for threshold in tried:
                    fixed = (threshold,) if exits == 3 else (*start[:k], threshold, *start[k + 1:])
                    problem.try_last(best, fixed)
        if (best.right == before).all():
            break
    return best.thresholds


def _order_statistics(confidence: np.ndarray, also: np.ndarray) -> np.ndarray:
    """Up to CANDIDATES evenly spaced ones, NEVER, and those of given rows."""
    places = np.linspace(0, confidence.size - 1, min(CANDIDATES, confidence.size)).astype(int)
    return np.unique(np.concatenate([np.sort(confidence)[places], also, [NEVER]]))


class _Best:
    """The best thresholds so far for each budget: [M, E], and their right answers [M]."""

    def __init__(self, budgets: np.ndarray, exits: int):
        self.budgets, self.right = budgets, np.full(len(budgets), -1, np.int64)
        self.thresholds = np.full((len(budgets), exits), NEVER)
        self.thresholds[:, 0] = ALWAYS              # within every budget that `check_budgets` lets
        self.thresholds[:, -1] = ALWAYS


class _Problem:
    """The images sorted by the confidence of the last exit whose threshold is free."""

    def __init__(self, confidence: np.ndarray, hits: np.ndarray, flops: np.ndarray):
        order = np.argsort(-confidence[-2], kind="stable")
        self.confidence, self.hits = confidence[:, order], hits[:, order].astype(np.int64)
        self.flops, self.n = flops, len(order)

    def try_last(self, best: _Best, fixed: Sequence[float]) -> None:
        """Improves `best` by the thresholds `fixed` of the first E - 2 exits and the best one of
        the exit behind them for each budget."""
        left, cost, right = np.ones(self.n, bool), 0.0, 0
        for k, threshold in enumerate(fixed):
            leaving = left & (self.confidence[k] >= threshold)
            cost += leaving.sum() * self.flops[k]
            right += (self.hits[k] & leaving).sum()
            left &= ~leaving
        value, early, late = self.confidence[-2, left], self.hits[-2, left], self.hits[-1, left]
        count = np.arange(len(value) + 1)
        costs = (cost + count * self.flops[-2] + (len(value) - count) * self.flops[-1]) / self.n
        answers = right + late.sum() + np.concatenate([[0], np.cumsum(early - late)])
        # Equal confidences leave together.
        answers[1:-1][value[:-1] == value[1:]] = -1
        # The best of at least `count` that leave: costs fall, so a budget asks for a least count.
        suffix = np.maximum.accumulate(answers[::-1])[::-1]
        least = np.searchsorted(-costs, -best.budgets * (1 + 1e-12) - 1e-12)
        reachable = least <= len(value)
        found = np.where(reachable, suffix[np.minimum(least, len(value))], -1)
        for i in np.flatnonzero(found > best.right):
            chosen = least[i] + int(np.argmax(answers[least[i]:] == found[i]))
            best.right[i] = found[i]
            best.thresholds[i, :-2] = fixed
            best.thresholds[i, -2] = value[chosen - 1] if chosen else NEVER
