"""DVT's thresholds as the authors' script found and applied them, and what it printed."""
import re

import numpy as np

from tests.golden.reader import Fixture
from vit_efficient.papers.dvt import budget
from vit_efficient.papers.dvt.jobs import official_lines

RTOL = 1e-6             # the script adds up in float32


def sure(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and hits [E, n] of probabilities [E, n, K]."""
    return probabilities.max(-1), probabilities.argmax(-1) == labels


def budgeted(fixture: Fixture) -> None:
    """All three modes: the distribution, thresholds, costs and accuracies of every budget."""
    config = fixture.config
    flops = config["flops_per_exit"].plain()
    solved, scored = (sure(fixture.given(f"{name}_probs"), fixture.given(f"{name}_labels"))
                      for name in ("train", "val"))
    shapes = [fixture.shape(f"{name}_probs") for name in ("train", "val")]
    assert shapes == [(len(flops), config[f"n_{name}"], config["classes"])
                      for name in ("train", "val")]
    count = len(fixture.values("mode2_exit_distribution"))
    assert re.match(rf"{count} budgets;", config["what"])
    shares = np.stack([budget.exit_shares(p, len(flops)) for p in range(1, count + 1)])
    ulp = float(re.search(r"atol ([\d.e-]+)\)", config["compare"])[1])
    fixture.expect("mode2_exit_distribution", shares, atol=ulp)
    found = np.stack([budget.official_thresholds(solved[0], row)
                      for row in fixture.values("mode2_exit_distribution")])
    fixture.expect("mode2_thresholds", found)
    assert "train_probs" in config["mode2"] and "mode1_thresholds" in config["mode1"]
    anytime = 100 * scored[1].mean(1)
    fixture.expect("anytime", anytime, rtol=RTOL)
    for mode, rows in (("mode1", fixture.given("mode1_thresholds")), ("mode2", found)):
        outcomes = [budget.outcome(*scored, row, flops) for row in rows]
        curve = [[each.cost for each in outcomes], [100 * each.accuracy for each in outcomes]]
        fixture.expect(f"{mode}_gflops", curve[0], rtol=RTOL)
        fixture.expect(f"{mode}_acc", curve[1], rtol=RTOL)
        head, tail = config[f"stdout_{mode}_head_tail"].plain()
        sets = ("test", "training")[:1 + (mode == "mode2")]
        assert head == [*(f"generate logits on {name} samples..." for name in sets),
                        f"inference: 1/{count + 1}"]
        printed(tail, flops, anytime.tolist(), curve)
    printed(config["stdout_mode0"].splitlines(), *map(list_after, config["stdout_mode0"]
                                                      .splitlines()))


def printed(lines: list[str], flops: list, anytime: list, curve: list) -> None:
    """Holds the authors' last three lines, of which the last may be cut off, against ours."""
    rows = [{"kind": "official", "scored_cost": cost, "scored_top1": top1}
            for cost, top1 in zip(*curve)]
    ours = official_lines({"flops": flops, "anytime": anytime, "rows": rows})
    for mine, theirs in zip(ours, lines, strict=True):
        whole = theirs.count("[") == theirs.count("]")
        given = numbers(theirs) if whole else numbers(theirs)[:-1]
        assert mine.partition(" : ")[0] == theirs.partition(" : ")[0]
        assert re.sub(r"[\d.e-]+", "", mine).startswith(
            re.sub(r"[\d.e-]+", "", theirs).rstrip(", ")[:40])
        np.testing.assert_allclose(numbers(mine)[:len(given)], given, rtol=RTOL)
        assert not whole or len(numbers(mine)) == len(given)


def numbers(line: str) -> list[float]:
    """Those behind the colon."""
    return [float(word) for word in re.findall(r"\d[\d.]*(?:e-?\d+)?", line.partition(" : ")[2])]


def list_after(line: str) -> list:
    """The list of numbers, or of lists, that a line ends with."""
    found = numbers(line)
    return [found[:len(found) // 2], found[len(found) // 2:]] if "[[" in line else found


def budgeted_edge(fixture: Fixture) -> None:
    """Ties, starved exits, and shares of which nothing is left when rounded down."""
    flops = fixture.config["flops_per_exit"].plain()
    assert "see 'cases'" in fixture.config["what"]
    for name, what in fixture.config["cases"].items():
        assert isinstance(what, str) and what
        confidence, hits = sure(fixture.given(f"{name}/probs"), fixture.given(f"{name}/labels"))
        found = budget.official_thresholds(confidence, fixture.given(f"{name}/distribution"))
        outcome = budget.outcome(confidence, hits, found, flops)
        fixture.expect(f"{name}/thresholds", found)
        fixture.expect(f"{name}/acc", 100 * outcome.accuracy, rtol=RTOL)
        fixture.expect(f"{name}/gflops", outcome.cost, rtol=RTOL)
