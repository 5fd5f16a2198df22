"""What a job measured, row by row, as text, as a CSV file and as a picture of accuracy over cost.

A row is a dict, equal in its keys to all others: a width of Scala, a threshold, a density.

    print(as_text(rows, [Column("width", 8, lambda row: f"{row['ratio']:g}"), score("top1")]))
    write_csv(rows, folder / "widths.csv")
    draw(rows, folder / "widths.png", title="every width", name=..., costs={"MACs": ...})
"""
from collections.abc import Callable, Mapping, Sequence
import csv
from pathlib import Path
from typing import Any, NamedTuple

from vit_efficient import disk

Row = dict[str, Any]


class Column(NamedTuple):
    """A column of `width` characters: its header and what it shows of a row, right-aligned."""
    header: str
    width: int
    cell: Callable[[Row], str]


def score(key: str) -> Column:
    """The column of a share that stands under `key`, as `top1_ema`: in percent."""
    return Column(key.replace("top", "top-").replace("_", " "), 11,
                  lambda row: f"{100 * row[key]:.1f} %")


def as_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A line of headers, then a line for each row."""
    lines = ["".join(f"{column.header:>{column.width}}" for column in columns)]
    lines += ["".join(f"{column.cell(row):>{column.width}}" for column in columns) for row in rows]
    return "\n".join(lines)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """The rows with a line of their keys, whole or not at all; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(path) as neighbour, open(neighbour, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: Sequence[Row], path: Path, *, title: str, name: Callable[[Row], str],
         costs: Mapping[str, Callable[[Row], float]],
         joined: Callable[[Row], bool] = lambda row: True) -> None:
    """A picture in which each cost, by the label of its axis, has a plot of top-1 over it.

    Raw and averaged weights (`top1`, `top1_ema`) have a curve each, through the points that are
    `joined`; the others are open circles beside it. `name` stands at a point.
    """
    from matplotlib.figure import Figure  # takes a second to import
    figure = Figure(figsize=(4.5 * len(costs), 3.6), layout="constrained")
    plots = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    scores = [key for key in rows[0] if key.startswith("top1")]
    for axes, (label, cost) in zip(plots, costs.items()):
        for i, key in enumerate(scores):
            for inside, style in ((True, "o-"), (False, "o")):
                points = [(cost(row), 100 * row[key]) for row in rows if joined(row) == inside]
                what = "averaged weights" if key.endswith("ema") else "weights"
                axes.plot(*zip(*points) if points else ((), ()), style, color=f"C{i}",
                          fillstyle="full" if inside else "none", label=what if inside else None)
        for row in rows:
            axes.annotate(name(row), (cost(row), 100 * row["top1"]), textcoords="offset points",
                          xytext=(4, -10), fontsize=8)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    plots[0].set_ylabel("top-1, %")
    plots[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
