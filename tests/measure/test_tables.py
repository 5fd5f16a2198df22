"""Rows as text, as CSV and as a picture."""
import csv

import numpy as np
from PIL import Image
import pytest

from vit_efficient.measure.tables import Column, as_text, draw, score, write_csv

ROWS = [{"ratio": 0.25, "macs": 1e9, "top1": 0.5, "top1_ema": 0.625},
        {"ratio": 1.0, "macs": 4e9, "top1": 0.75, "top1_ema": 0.875}]


def test_text_has_a_line_for_each_row_and_columns_of_their_width():
    columns = [Column("width", 8, lambda row: f"{row['ratio']:g}"), score("top1"),
               score("top1_ema")]
    assert as_text(ROWS, columns).splitlines() == [
        "   width      top-1  top-1 ema",
        "    0.25     50.0 %     62.5 %",
        "       1     75.0 %     87.5 %"]


def test_a_csv_file_holds_every_number_and_comes_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "widths.csv"
    write_csv(ROWS, path)
    with open(path, newline="") as file:
        found = [{key: float(text) for key, text in row.items()} for row in csv.DictReader(file)]
    assert found == ROWS
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_csv([ROWS[0], ROWS[1] | {"more": 1}], path)
    assert [p.name for p in path.parent.iterdir()] == ["widths.csv"]
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure
    saved, real = [], Figure.savefig

    def savefig(figure, *arguments, **options):
        saved.append(figure)
        return real(figure, *arguments, **options)
    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_a_picture_has_a_plot_of_each_cost_and_a_curve_of_each_score(tmp_path, figures):
    draw(ROWS, tmp_path / "x.png", title="every width", name=lambda row: f"{row['ratio']:g}",
         costs={"GMACs": lambda row: row["macs"] / 1e9, "ratio": lambda row: row["ratio"]},
         joined=lambda row: row["ratio"] == 1)
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    assert picture.shape[1] > picture.shape[0]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 9
    figure, = figures
    assert [plot.get_xlabel() for plot in figure.axes] == ["GMACs", "ratio"]
    for plot, (inside, outside) in zip(figure.axes, (((4,), (1,)), ((1,), (0.25,)))):
        curves = [(*map(tuple, line.get_data()), line.get_fillstyle()) for line in plot.lines]
        assert curves == [(inside, (75.0,), "full"), (outside, (50.0,), "none"),
                          (inside, (87.5,), "full"), (outside, (62.5,), "none")]
        assert [text.get_text() for text in plot.texts] == ["0.25", "1"]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["weights", "averaged weights"]
