"""The input's speed beside that of bare Pillow, which makes the same crops."""
import itertools

import numpy as np
from PIL import Image
import pytest

from tests.runs import small_config
from vit_efficient.data.host import crops as host
from vit_efficient.engine.assemble import assemble
from vit_efficient.measure.speed import bare_pillow, time_input


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
