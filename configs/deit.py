"""DeiT on ImageNet-1k (ICML 2021), the ground of Scala, DVT and SViTE.

Expected top-1 at 224: tiny 72.2, small 79.8, base 81.8 (the authors' numbers).

    python -m vit_efficient.main --config=configs/deit.py:imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --job=evaluate --config.init_from=deit_base.pth \\
        --config=configs/deit.py:model=deit_base_patch16_224,imagefolder=PATH

Words: model=NAME, and for other images than ImageNet tfds=NAME, imagefolder=PATH, arrayrecord=PATH
or clips=PATH (vit_efficient/data/README.md).
"""
from typing import Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGENET, Images, named_images


def get_config(*, model: str = "deit_small_patch16_224", **images: Unpack[Images]) -> ConfigDict:
    """The defaults of DeiT's main.py: 300 epochs, on 1024 images a step."""
    return ConfigDict(dict(
        seed=0, epochs=300.0, batch_size=1024, dtype="bfloat16",
        data=dict(image_size=384 if model.endswith("_384") else 224,
                  **named_images(images, IMAGENET)),
        augment=dict(crop="random_resized", interpolation="bicubic", randaugment=9.0, erase=0.25,
                     mixup=0.8, cutmix=1.0, repeats=3, device=("normalize", "erase", "mix")),
        model=dict(name=model, drop_path=0.1),
        objective=dict(name="supervised", label_smoothing=0.1),
        optim=dict(lr=5e-4, lr_batch=512, schedule="official", warmup_epochs=5.0, warmup_lr=1e-6,
                   min_lr=1e-5, weight_decay=0.05),
        step=dict(ema_decay=0.99996)))
