"""Scala on ImageNet-1k (NeurIPS 2024): one DeiT that is a classifier at many widths.

Expected top-1 at widths 0.25, 0.5, 0.75, 1 (the authors' numbers): S with 13 widths, 100 epochs:
58.7, 68.3, 73.3, 76.1; B with 13 widths, 300 epochs: 75.3, 79.3, 81.2, 82.0.

    python -m vit_efficient.main --config=configs/scala.py:imagefolder=PATH --job=evaluate \\
        --config.init_from=scala_s_13.pth
    python -m vit_efficient.main --config=configs/scala.py:base,7,imagefolder=PATH --job=evaluate \\
        --config.init_from=scala_b_7.pth

Words: small | base, the number of widths (25 | 13 | 7 | 4), tfds=NAME (by default imagenet2012),
imagefolder=PATH (a folder with train|val/<class>/*.jpg), arrayrecord=PATH (what --job=prepare
makes). Evaluation is complete. Training is to come: so far it trains the full width alone, what the
paper calls separate training.
"""
from typing import Literal

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGENET, named_images

GRANULARITY = {25: 0.03125, 13: 0.0625, 7: 0.125, 4: 0.25}
# Epochs, batch, learning rate of 512 images, epochs of warm-up, magnitude of RandAugment: the
# authors' commands.
RECIPES = {"small": (100.0, 1024, 2e-3, 3.0, 1.0), "base": (300.0, 512, 1e-3, 5.0, 4.0)}


def get_config(size: Literal["small", "base"] = "small", widths: Literal[25, 13, 7, 4] = 13, *,
               tfds: str | None = None, imagefolder: str | None = None,
               arrayrecord: str | None = None) -> ConfigDict:
    """The widths and the optimiser of the authors' commands."""
    epochs, batch_size, lr, warmup, magnitude = RECIPES[size]
    images = named_images(tfds=tfds, imagefolder=imagefolder, arrayrecord=arrayrecord)
    return ConfigDict(dict(
        seed=0, epochs=epochs, batch_size=batch_size, dtype="bfloat16",
        data=dict(image_size=224, **(images or IMAGENET)),
        augment=dict(crop="random_resized", interpolation="bicubic", randaugment=magnitude,
                     erase=0.25, mixup=0.8, cutmix=1.0, device=("normalize", "erase", "mix")),
        model=dict(name=f"deit_{size}_distilled_patch16_224_scala", drop_path=0.1,
                   granularity=GRANULARITY[widths]),
        objective=dict(name="separate", label_smoothing=0.1),
        optim=dict(lr=lr, lr_batch=512, schedule="official", warmup_epochs=warmup, warmup_lr=1e-6,
                   min_lr=1e-5, halved_epochs=10, weight_decay=0.05),
        step=dict(ema_decay=0.99996)))
