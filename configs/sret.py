"""SReT on ImageNet-1k (ECCV 2022): recursive blocks with sliced attention.

Expected top-1 (the authors' numbers): sret_t 76.0, sret_lt 76.7, sret_s 81.9; without slices 76.1,
76.8, 82.0.

    python -m vit_efficient.main --config=configs/sret.py:imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --config=configs/sret.py:model=sret_s_wo_slice,imagefolder=PATH \\
        --config.init_from=SReT_S_wo_slice.pth --job=evaluate

Words: model=NAME (one that ends with _384 or _512 takes images of that size), and for other images
than ImageNet tfds=NAME, imagefolder=PATH, arrayrecord=PATH or clips=PATH
(vit_efficient/data/README.md). Sliced models permute tokens, in evaluation too: always the same way
here.
"""
from typing import Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGENET, Images, named_images


def get_config(*, model: str = "sret_lt", **images: Unpack[Images]) -> ConfigDict:
    """The defaults of DeiT's main.py, learning rate and warm-up by the authors' README."""
    side = model.rpartition("_")[2]
    return ConfigDict(dict(
        seed=0, epochs=300.0, batch_size=1024, dtype="bfloat16",
        data=dict(image_size=int(side) if side in ("384", "512") else 224,
                  **named_images(images, IMAGENET)),
        augment=dict(crop="random_resized", interpolation="bicubic", randaugment=9.0, erase=0.25,
                     mixup=0.8, cutmix=1.0, repeats=3, device=("normalize", "erase", "mix")),
        model=dict(name=model),
        objective=dict(name="supervised", label_smoothing=0.1),
        optim=dict(lr=1e-3, lr_batch=512, schedule="official", warmup_epochs=30.0, warmup_lr=1e-6,
                   min_lr=1e-5, weight_decay=0.05),
        step=dict(ema_decay=0.99996)))
