"""A toy engine: the signatures of its groups, models and job, and a recipe for them."""
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from vit_efficient.settings.values import Count, Positive, Rate

RECIPE = """
from typing import Literal
from ml_collections import ConfigDict

def get_config(variant: Literal["small", "base"] = "small",
               data: Literal["imagenet", "digits"] = "imagenet", *,
               arch: str | None = None, folds: int = 1) -> ConfigDict:
    config = ConfigDict(dict(epochs=300, batch_size=1024, data=dict(source="tfds", scale=[0.08, 1]),
                             model=dict(name=f"toy_{variant}", drop_path=0.1), optim=dict(lr=1e-3)))
    if data == "digits":
        config.update(dict(epochs=2, data=dict(source="digits")))
    if arch:
        config.model.update(dict(name="toy", arch=arch))
    return config
"""


def open_data(split: str, *, source: Literal["tfds", "digits"], path: str = "",
              scale: tuple[float, float] = (0.5, 1.0)):
    ...


def make_optimizer(length: int, *, lr: Positive, b2: Rate = 0.999, warmup: Positive = 5,
                   clip_norm: Positive | None = None, nesterov: bool = False):
    ...


class Writer:
    def __init__(self, workdir: Path, *, every: Count = 50):
        ...


def toy(num_classes: int, image_size: int, dtype: str, *, arch: str, width: Count = 8,
        drop_path: Rate = 0.0):
    ...


def other(num_classes: int, image_size: int, dtype: str, *, drop_path: Rate = 0.0,
          heads: Count = 2):
    ...


def search(config, workdir, *, out: str, steps: Count = 500):
    ...


GROUPS = {group: f"{__name__}:{name}" for group, name in (
    ("data", "open_data"), ("optim", "make_optimizer"), ("log", "Writer"))}


def models() -> ModuleType:
    """As `papers/<paper>/models.py`."""
    module = ModuleType("toy_models")
    module.VARIANTS = {"toy": toy, "other": other, "toy_base": partial(toy, arch="8,4", width=32),
                       "toy_small": partial(toy, image_size=32, arch="8,2", width=16)}
    return module


@contextmanager
def problems(*texts: str) -> Iterator:
    """Expects a ValueError that holds all of the texts."""
    with pytest.raises(ValueError) as info:
        yield info
    for text in texts:
        assert text in str(info.value)
