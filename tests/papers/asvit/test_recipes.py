"""configs/asvit.py: what its words say of images, augmentation and phases."""
from pathlib import Path

import pytest

from vit_efficient.data.augment import make_augment
from vit_efficient.papers.asvit.phases import check, tokenization
from vit_efficient.settings.words import read_file

CONFIG = Path(__file__).parents[3] / "configs" / "asvit.py"
# The augmentation of the authors' data config.
FULL = dict(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="random",
            randaugment=9.0, erase=0.25, mixup=0.8, cutmix=1.0)
OFF = dict(randaugment=None, erase=0.0, mixup=0.0, cutmix=0.0)


@pytest.mark.parametrize("words,images,changes", [
    ("", dict(source="tfds", name="imagenet2012", image_size=224), FULL),
    ("large,p56,imagefolder=a,b", dict(source="imagefolder", path="a,b", image_size=224), FULL),
    ("cifar10", dict(source="tfds", name="cifar10", image_size=64), OFF),
    ("cifar10,imagefolder=x", dict(source="imagefolder", path="x", image_size=64), OFF),
    ("tfds=imagenette", dict(source="tfds", name="imagenette", image_size=224), FULL),
    ("digits", dict(source="digits", image_size=32), OFF)])
def test_words(words, images, changes):
    config = read_file(CONFIG, words)
    assert config["data"] == images
    assert {key: config["augment"][key] for key in changes} == changes
    make_augment(**config["augment"])
    phases = tokenization(config["epochs"], config["phases"]["schedule"])
    check(phases, words, images["image_size"], False)
    assert [stride for _, stride, _ in phases] == [16, 8, 4]
