"""The progress line: its clock, and the time that is left."""
from hypothesis import given, strategies as st
import numpy as np
import pytest

from vit_efficient.engine import progress


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
