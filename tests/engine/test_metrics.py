"""What a run writes and shows, read back."""
import json
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_efficient.engine import metrics, progress
from vit_efficient.engine.curves import draw_curves


def test_means_weigh_by_count_and_start_anew():
    mean = metrics.Mean()
    mean.add({"top1": (np.float32(3), 4), "loss": (2.0, 1)})
    mean.add({"top1": (1, 12), "loss": (4.0, 1), "empty": (0.0, 0)})
    assert mean.take() == {"top1": 0.25, "loss": 3.0}
    assert mean.take() == {}


def test_a_resumed_run_holds_every_step_once(tmp_path):
    first = metrics.Writer(tmp_path, 0)
    for step in range(1, 7):
        first.write(step, {"loss": 1 / step, "bad": math.nan})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')                      # a kill in the middle of a line
    second = metrics.Writer(tmp_path, 4)
    second.write(5, {"loss": 5.0})
    second.close()
    records = metrics.read(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5]
    assert records[3] == {"step": 4, "loss": 0.25, "bad": None} and records[-1]["loss"] == 5.0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")][-2:] == [(4, 0.25), (5, 5.0)]
    assert "bad" not in events.Tags()["scalars"]


def test_floats_come_back_bit_equal(tmp_path):
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    writer = metrics.Writer(tmp_path, 0)
    for step, value in enumerate(values):
        writer.write(step, {"loss": value})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [np.float32(json.loads(line)["loss"]) for line in lines] == list(values)


@given(st.integers(0, 10 ** 6))
def test_clock_reads_back(seconds):
    parts = [int(part) for part in progress.clock(seconds).split(":")]
    total = 0
    for part in parts:
        total = 60 * total + part
    assert total == seconds and all(part < 60 for part in parts[1:])


def test_time_left_is_told_by_work(monkeypatch, caplog):
    """Ten cheap steps, then ten that cost ninefold: after 5 steps 19/20 of the work is ahead."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    work = np.cumsum([0.0] + [1.0] * 10 + [9.0] * 10)
    shown = progress.Progress(work, batch_size=8, start=0)
    now[0] = 12.0
    shown.pause(2.0)
    caplog.set_level("INFO")
    speeds = shown.line(5, {"loss": 1.0, "top1": 0.5}, waited=1.0)
    assert speeds == {"images_per_second": 4.0, "step_seconds": 2.0,
                      "waiting_share": pytest.approx(0.1)}
    # 95 units of work, 2 s each
    assert "left 3:10" in caplog.text and "top-1  50.0 %" in caplog.text


def test_curves_are_a_picture(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    for step in range(1, 9):
        writer.write(step, {"loss": 2 / step, "top1": step / 9, "phase": step // 5})
    writer.write(8, {"val/top1": 0.9, "val/top1_ema": 0.95, "val/loss": 0.3})
    writer.close()
    from PIL import Image
    image = np.asarray(Image.open(draw_curves(tmp_path)).convert("RGB"))
    assert image.shape[0] > 300 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50
