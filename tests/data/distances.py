"""Distances of samples from distributions; seeds are fixed, so that a test always says the same."""
import numpy as np


def kolmogorov(sample, cumulative) -> float:
    """sqrt(n) times the largest distance from a cumulative distribution: above 1.95 in 0.1 %."""
    x = np.sort(np.asarray(sample, float).ravel())
    expected, n = cumulative(x), len(x)
    gaps = expected - np.arange(n) / n, np.arange(1, n + 1) / n - expected
    return n ** 0.5 * max(gap.max() for gap in gaps)


def smirnov(a, b) -> float:
    """The same for two samples, also of whole numbers."""
    a, b = (np.sort(np.asarray(x, float).ravel()) for x in (a, b))
    grid = np.concatenate([a, b])
    gap = np.abs(np.searchsorted(a, grid, "right") / len(a)
                 - np.searchsorted(b, grid, "right") / len(b)).max()
    return gap * (len(a) * len(b) / (len(a) + len(b))) ** 0.5


def deviations(hits: int, n: int, probability: float) -> float:
    """How many standard deviations a count is off."""
    return abs(hits - n * probability) / (n * probability * (1 - probability)) ** 0.5
