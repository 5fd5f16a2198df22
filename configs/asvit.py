"""As-ViT on ImageNet-1k, 300 epochs with progressive tokenization (ICLR 2022).

Expected top-1 at 224: small 81.2, base 82.5, large 83.5 (the authors' numbers). On digits, in two
minutes: at least 98.

    python -m vit_efficient.main --config=configs/asvit.py:digits
    python -m vit_efficient.main --config=configs/asvit.py:base,p56,imagefolder=PATH --workdir=DIR

Words: small | base | large, digits, a schedule of the tokens (off | p18 | p37 | p56 | figure),
tfds=NAME (a data set of TensorFlow Datasets, as imagenet2012), imagefolder=PATH (a folder with
train|val/<class>/*.jpg), arrayrecord=PATH (what --job=prepare makes) and, last, arch=STRING (any
topology, as 8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88).
"""
from typing import Literal

from ml_collections import ConfigDict

from vit_efficient.data.sources import named_images


def get_config(variant: Literal["small", "base", "large"] = "small",
               data: Literal["imagenet", "digits"] = "imagenet",
               schedule: Literal["off", "p18", "p37", "p56", "figure"] = "p37", *,
               tfds: str | None = None, imagefolder: str | None = None,
               arrayrecord: str | None = None, arch: str | None = None) -> ConfigDict:
    """The recipe of spec asvit.md 8.3; `digits` changes what a small data set asks for."""
    images = named_images(tfds=tfds, imagefolder=imagefolder, arrayrecord=arrayrecord)
    if data == "imagenet" and not images:
        raise ValueError("ImageNet-1k with RandAugment, mixup and erasing is not in this version "
                         "yet: train on configs/asvit.py:digits or on your own images with "
                         "configs/asvit.py:imagefolder=PATH")
    config = ConfigDict(dict(
        seed=0, epochs=300.0, batch_size=1024, dtype="bfloat16",
        data=dict(image_size=224, **images),
        augment=dict(crop="random_resized", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5,
                     interpolation="random", eval_crop=0.875),
        model=dict(name=f"asvit_{variant}", ape=True, drop_path=0.1),
        objective=dict(name="supervised", label_smoothing=0.1),
        phases=dict(name="progressive", schedule=schedule),
        optim=dict(lr=5e-4, lr_batch=512, warmup_epochs=5.0, weight_decay=0.05)))
    if data == "digits":
        config.update(dict(
            epochs=100.0, batch_size=64, dtype="float32",
            data=dict(source="digits", image_size=32),
            augment=dict(scale=(0.6, 1.0), ratio=(0.85, 1.18), flip=0.0,
                         interpolation="bicubic", eval_crop=1.0),
            loader=dict(threads=1),
            model=dict(name="asvit_tiny"),
            optim=dict(lr=2e-3, lr_batch=64),
            step=dict(ema_decay=0.99),
            validation=dict(every_epochs=5.0),
            checkpoint=dict(every_epochs=5.0)))
    if arch:
        config.model.update(dict(name="asvit", arch=arch))
    return config
