"""The job `benchmark`: every phase and the input measured, and nothing trained."""
import json

import pytest

from tests.runs import small_config
from vit_efficient.jobs.benchmark import benchmark


def test_benchmark_measures_every_phase_and_the_input(tmp_path, capsys):
    out = tmp_path / "bench.json"
    result = benchmark(small_config(), tmp_path / "run", rounds=1, steps=2, input_batches=3,
                       out=str(out))
    assert list(result["phases"]) == ["stride 16, dilation 5", "stride 4, dilation 1"]
    assert json.loads(out.read_text()) == result
    coarse, fine = result["phases"].values()
    assert fine["relative_time"] == fine["relative_macs"] == 1 > coarse["relative_macs"]
    assert all(0 <= row["idle_share"] < 1 and row["images_per_second"] > 0
               for row in (coarse, fine))
    for row in (coarse, fine):
        assert row["flops_per_second"] == pytest.approx(6 * row["macs"] * 64 / row["step_seconds"])
        assert row["share_of_peak"] is None               # a CPU's is not in the table
        assert row["with_input_images_per_second"] > 0 and 0 <= row["waiting_share"] <= 1
        assert row["temporary_bytes"] > 0
    assert result["input_images_per_second"] > 0 < result["input_images_per_second_and_core"]
    assert result["input_over_pillow"] is None            # digits are no files
    assert "stride 16, dilation 5" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
