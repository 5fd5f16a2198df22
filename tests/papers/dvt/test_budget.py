"""Thresholds against slow obvious searches, and what they must never do."""
from itertools import product

from hypothesis import given, strategies as st
import numpy as np
import pytest

from vit_efficient.papers.dvt import budget

FLOPS = (0.5, 1.5, 3.5)


def noise(n: int, exits: int = 3, seed: int = 0, decimals: int = 3):
    """Confidences and hits of images, some easy and some hard; later exits are righter."""
    rng = np.random.default_rng(seed)
    ease = rng.random(n)
    confidence = np.clip(0.3 + 0.6 * ease + 0.15 * rng.normal(size=(exits, n)), 0, 1)
    chance = np.clip(0.5 + 0.5 * ease + 0.1 * np.arange(exits)[:, None], 0, 1)
    return np.round(confidence, decimals).astype(np.float32), rng.random((exits, n)) < chance


def slow_thresholds(confidence: np.ndarray, shares: np.ndarray) -> list[float]:
    """The authors' loops over images."""
    exits, n = confidence.shape
    found, gone = [], set()
    for k in range(exits - 1):
        count = int(np.float32(n) * shares[k])
        order = [i for i in np.argsort(-confidence[k], kind="stable") if i not in gone]
        found.append(float(confidence[k, order[count - 1]]) if 0 < count <= len(order) else 1e8)
        gone |= {i for i in range(n) if confidence[k, i] >= found[-1]}
    return [*found, -1e8]


@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 59), st.integers(1, 3),
       st.integers(0, 100))
def test_the_official_search_is_the_loop_over_images(n, exits, p, decimals, seed):
    confidence, hits = noise(n, exits, seed, decimals)
    shares = budget.exit_shares(p, exits)
    assert shares.sum() == pytest.approx(1) and shares.dtype == np.float32
    thresholds = budget.official_thresholds(confidence, shares)
    np.testing.assert_array_equal(thresholds, np.float32(slow_thresholds(confidence, shares)))
    flops = np.arange(1.0, exits + 1)
    taken = [next(k for k in range(exits) if confidence[k, i] >= thresholds[k]) for i in range(n)]
    found = budget.outcome(confidence, hits, thresholds, flops)
    assert found.cost == pytest.approx(np.mean([flops[k] for k in taken]))
    assert found.accuracy == pytest.approx(np.mean([hits[k, i] for i, k in enumerate(taken)]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("exits", [2, 3])
def test_the_solver_finds_the_best_of_all_thresholds(exits, seed):
    """Twelve images: every pair of thresholds is tried."""
    confidence, hits = noise(12, exits, seed, decimals=1)
    flops, budgets = FLOPS[:exits], np.linspace(0.5, FLOPS[exits - 1], 7)
    found = budget.solve(confidence, hits, flops, budgets)
    values = [[*np.unique(confidence[k]), 1e8] for k in range(exits - 1)]
    every = [budget.outcome(confidence, hits, np.float32([*row, -1e8]), flops)
             for row in product(*values)]
    for row, bound in zip(found, budgets):
        mine = budget.outcome(confidence, hits, row, flops)
        assert mine.cost <= bound + 1e-9
        assert mine.accuracy == pytest.approx(max(
            each.accuracy for each in every if each.cost <= bound + 1e-9))


@pytest.mark.parametrize("exits", [2, 3, 4])
def test_the_solver_is_never_below_the_official_rows(exits):
    confidence, hits = noise(400, exits, seed=5)
    flops, rows = np.arange(1.0, exits + 1), budget.official_rows(confidence)
    outcomes = [budget.outcome(confidence, hits, row, flops) for row in rows]
    picked = range(0, 59, 20) if exits > 3 else range(59)
    found = budget.solve(confidence, hits, flops, [outcomes[i].cost for i in picked], rows[picked])
    gains = []
    for row, i in zip(found, picked):
        mine = budget.outcome(confidence, hits, row, flops)
        assert mine.cost <= outcomes[i].cost + 1e-9
        gains.append(mine.accuracy - outcomes[i].accuracy)
    assert min(gains) >= 0 and max(gains) > 0


def test_a_budget_out_of_range_is_told_the_range():
    for value in (0.4, 3.6):
        with pytest.raises(ValueError, match=f"--budget={value}: .* from 0.5, .* to 3.5"):
            budget.check_budgets((1.0, value), FLOPS)
    budget.check_budgets(FLOPS, FLOPS)
