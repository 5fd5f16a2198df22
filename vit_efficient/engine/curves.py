"""The picture that a run leaves: `curves.png`, drawn from `metrics.jsonl`.

`jobs/train` draws it when a run ends, a notebook at any time; it needs nothing but the file:

    draw_curves(Path("runs/asvit-digits"))
"""
from pathlib import Path

from vit_efficient.engine.metrics import read


def draw_curves(workdir: Path) -> Path:
    """`curves.png`, from `metrics.jsonl`: loss and accuracy over steps, a line at every phase."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read(workdir / "metrics.jsonl")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")

    def curve(axes, name: str, label: str, scale: float = 1.0) -> None:
        points = [(r["step"], scale * r[name]) for r in records if r.get(name) is not None]
        if points:
            axes.plot(*zip(*points), label=label, marker="." if len(points) < 60 else "")

    curve(left, "loss", "training")
    curve(left, "val/loss", "held out")
    curve(right, "top1", "training", 100)
    names = sorted({name for r in records for name in r if name.startswith("val/top1")})
    for name in names:
        curve(right, name, name.replace("val/top1", "held out ").strip().replace("_", " "), 100)
    phases = [(r["step"], r["phase"]) for r in records if "phase" in r]
    for axes, title in (left, "loss"), (right, "top-1 (%)"):
        for before, after in zip(phases, phases[1:]):
            if before[1] != after[1]:
                axes.axvline(before[0], color="gray", linewidth=0.8, linestyle=":")
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    path = workdir / "curves.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
