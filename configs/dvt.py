"""DVT on ImageNet-1k (NeurIPS 2021): a cascade of transformers with 7x7, 10x10, 14x14 tokens.

Expected top-1 at the three exits: T2T-ViT-12 69.0, 75.7, 80.0 (the authors' numbers).

    python -m vit_efficient.main --config=configs/dvt.py:imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --config=configs/dvt.py:t2t_14,imagefolder=PATH --job=evaluate \\
        --config.init_from=dvt_t2t_vit_14.pth

Words: t2t_12 | t2t_14 | deit_small, and for other images than ImageNet tfds=NAME, imagefolder=PATH,
arrayrecord=PATH or clips=PATH (vit_efficient/data/README.md). Evaluation scores every exit on all
images; thresholds are to come.
"""
from typing import Literal, Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGENET, Images, named_images

NAMES = {"t2t_12": "DVT_T2t_vit_12", "t2t_14": "DVT_T2t_vit_14", "deit_small": "DVT_Deit_small"}
# Batch, learning rate as it stands, weight decay, epochs of warm-up: the authors' README; DeiT's.
RECIPES = {"t2t_12": (1024, 2e-3, 0.03, 20.0), "t2t_14": (512, 5e-4, 0.05, 20.0),
           "deit_small": (1024, 1e-3, 0.05, 5.0)}


def get_config(backbone: Literal["t2t_12", "t2t_14", "deit_small"] = "t2t_12",
               **images: Unpack[Images]) -> ConfigDict:
    """The authors' commands and defaults: 300 epochs and 10 of cool-down."""
    batch_size, lr, weight_decay, warmup = RECIPES[backbone]
    return ConfigDict(dict(
        seed=0, epochs=310.0, batch_size=batch_size, dtype="bfloat16",
        data=dict(image_size=224, **named_images(images, IMAGENET)),
        augment=dict(crop="random_resized", interpolation="random", randaugment=9.0, erase=0.25,
                     mixup=0.8, cutmix=1.0, device=("mix", "normalize", "erase")),
        model=dict(name=NAMES[backbone], drop_path=0.1),
        objective=dict(name="exits", label_smoothing=0.1),
        optim=dict(lr=lr, schedule="official", lag=0, warmup_epochs=warmup, warmup_lr=1e-6,
                   min_lr=1e-5, cooldown_epochs=10, weight_decay=weight_decay),
        step=dict(ema_decay=0.99996)))
