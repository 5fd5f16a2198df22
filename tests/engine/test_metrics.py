"""The metrics that a run writes, read back."""
import json
import math

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vit_efficient.engine import metrics


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
