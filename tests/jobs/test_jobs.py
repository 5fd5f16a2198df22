"""The jobs that measure a config without training it: summary and benchmark."""
import itertools
import json

import numpy as np
from PIL import Image
import pytest

from tests.runs import small_config
import vit_efficient
from vit_efficient.data.host import crops as host
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.overview import overview
from vit_efficient.jobs.benchmark import benchmark
from vit_efficient.jobs.summary import summary
from vit_efficient.measure.speed import bare_pillow, time_input


def test_summary_adds_up_and_writes_nothing(tmp_path, capsys):
    config = small_config()
    rows = summary(config, tmp_path / "run")
    total = rows.pop("total")
    for key in "parameters", "trained", "macs":
        assert total[key] == sum(row[key] for row in rows.values())
    assert total["macs"] == sum(assemble(config).model.macs().values())
    text = capsys.readouterr().out
    assert f"{total['parameters']:,}" in text and "layers_0/blocks_0/attn/qkv/kernel" in text
    assert not (tmp_path / "run").exists()


def test_summary_needs_no_data_where_the_classes_are_given(tmp_path):
    rows = summary(vit_efficient.config("dvt:t2t_14"), tmp_path, num_classes=1000)
    assert list(rows) == ["less_less_token", "less_token", "normal_token", "total"]
    assert [row["parameters"] for row in rows.values()] == [        # the authors' code
        21_574_656, 23_156_110, 23_151_070, 67_881_836]
    assert rows["total"]["trained"] == 67_735_916
    headless = summary(vit_efficient.config("sret"), tmp_path, num_classes=0)
    assert headless["total"]["parameters"] == 4_988_024 - 257_000


def test_overview_names_the_share_of_each_phase():
    run = assemble(small_config())
    coarse, fine = (sum(run.model.macs(stride=s).values()) for s in (16, 4))
    assert f"({100 * coarse / fine:.1f} %), " in overview(run)
    assert "44 steps of 64 images on 8 x cpu" in overview(run)


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


def test_the_input_is_measured_beside_pillow(tmp_path):
    rng = np.random.default_rng(0)
    for split, label in itertools.product(("train", "val"), "ab"):
        (tmp_path / split / label).mkdir(parents=True)
        for i in range(4):
            picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
            picture.save(tmp_path / split / label / f"{i}.png")
    found = time_input(assemble(small_config(
        data__source="imagefolder", data__path=str(tmp_path), batch_size=8)), 2)
    ours, pillow = (found[f"{name}_images_per_second_and_core"] for name in ("input", "pillow"))
    assert found["input_over_pillow"] == pytest.approx(ours / pillow)
    data = (tmp_path / "train/a/0.png").read_bytes()
    crop = bare_pillow(data, 32, np.random.default_rng(0))
    expected = host.train(np.asarray(Image.open(tmp_path / "train/a/0.png")), 32,
                          np.random.default_rng(0), crop="random_resized", scale=(0.08, 1.0),
                          ratio=(3 / 4, 4 / 3), flip=0.0, interpolation="bicubic", eval_crop=1.0)
    assert crop.shape == (32, 32, 3)
    assert np.abs(np.int32(crop) - expected).mean() < 1
