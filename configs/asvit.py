"""As-ViT on ImageNet-1k, 300 epochs with progressive tokenization (ICLR 2022).

Expected top-1 at 224: small 81.2, base 82.5, large 83.5 (the authors' numbers). On digits, in two
minutes: about 98. CIFAR-10 at 64 pixels, 24 epochs of a tiny model, seeds 0 and 1: `off` 73.3
and 75.4, `p37` 74.0 and 73.4 in three quarters of the time.

    python -m vit_efficient.main --config=configs/asvit.py --workdir=DIR
    python -m vit_efficient.main --config=configs/asvit.py:base,p56,imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --config=configs/asvit.py:digits
    python -m vit_efficient.main --config=configs/asvit.py:cifar10,imagefolder=PATH --workdir=DIR

Words: small | base | large, imagenet | cifar10 | digits, a schedule of the tokens (off | p18 | p37
| p56 | figure), for other images tfds=NAME, imagefolder=PATH, arrayrecord=PATH or clips=PATH
(vit_efficient/data/README.md) and, last, arch=STRING (any topology, as
8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88).
"""
from typing import Literal, Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGES, Images, named_images


def get_config(variant: Literal["small", "base", "large"] = "small",
               data: Literal["imagenet", "cifar10", "digits"] = "imagenet",
               schedule: Literal["off", "p18", "p37", "p56", "figure"] = "p37", *,
               arch: str | None = None, **images: Unpack[Images]) -> ConfigDict:
    """The augmentation of the authors' data config, else DeiT's settings: no trainer was published;
    `cifar10` and `digits` change what small images ask for."""
    config = ConfigDict(dict(
        seed=0, epochs=300.0, batch_size=1024, dtype="bfloat16",
        data=dict(image_size=224, **named_images(images, IMAGES[data])),
        augment=dict(crop="random_resized", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5,
                     interpolation="random", randaugment=9.0, erase=0.25, mixup=0.8, cutmix=1.0,
                     eval_crop=0.875, device=("normalize", "erase", "mix")),
        model=dict(name=f"asvit_{variant}", ape=True, drop_path=0.1),
        objective=dict(name="supervised", label_smoothing=0.1),
        phases=dict(name="progressive", schedule=schedule),
        optim=dict(lr=5e-4, lr_batch=512, warmup_epochs=5.0, weight_decay=0.05)))
    if data != "imagenet":
        # Short runs of a tiny model: it underfits what mixing, erasing and RandAugment leave.
        config.update(dict(
            dtype="float32", model=dict(name="asvit_tiny"),
            augment=dict(interpolation="bicubic", randaugment=None, erase=0.0, mixup=0.0,
                         cutmix=0.0, eval_crop=1.0)))
    if data == "cifar10":
        # A first stage of small windows and one head: that is where a tiny model spends its time.
        config.update(dict(
            epochs=24.0, batch_size=64,
            data=dict(image_size=64),
            augment=dict(scale=(0.7, 1.0)),
            model=dict(name="asvit", arch="4,4,1,1|2,2,2,1|2,1,2,1|2,1,2,1|8,32", drop_path=0.0),
            optim=dict(lr=1e-3, lr_batch=64, warmup_epochs=2.0),
            step=dict(ema_decay=0.999),
            validation=dict(every_epochs=4.0)))
    if data == "digits":
        config.update(dict(
            epochs=100.0, batch_size=64,
            data=dict(image_size=32),
            augment=dict(scale=(0.6, 1.0), ratio=(0.85, 1.18), flip=0.0),
            loader=dict(threads=1),
            optim=dict(lr=2e-3, lr_batch=64),
            step=dict(ema_decay=0.99),
            validation=dict(every_epochs=5.0),
            checkpoint=dict(every_epochs=5.0)))
    if arch:
        config.model.update(dict(name="asvit", arch=arch))
    return config
