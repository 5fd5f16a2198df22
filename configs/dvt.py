"""DVT (NeurIPS 2021): a cascade of transformers with 7x7, 10x10 and 14x14 tokens, an exit each.

Expected top-1 at the three exits (the authors' numbers): T2T-ViT-12 69.0, 75.7, 80.0; with
thresholds T2T-ViT-14 82.4 at 4.0 G multiply-adds, DeiT-small 81.7 at 4.63 G. On digits: not
measured yet.

    python -m vit_efficient.main --config=configs/dvt.py:imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --config=configs/dvt.py:t2t_14,imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --config=configs/dvt.py:7-14,features,imagefolder=PATH
    python -m vit_efficient.main --config=configs/dvt.py:single,imagefolder=PATH
    python -m vit_efficient.main --config=configs/dvt.py:cifar10,init_from=FILE --workdir=DIR
    python -m vit_efficient.main --config=configs/dvt.py:digits
    python -m vit_efficient.main --config=configs/dvt.py:t2t_14,imagefolder=PATH --job=evaluate \\
        --config.init_from=dvt_t2t_vit_14.pth

The first two are the authors' commands (8 GPUs): T2T-ViT-12 with batches of 1024 and a learning
rate of 2e-3, T2T-ViT-14 with 512 and 5e-4. For the DeiT they gave none: DeiT's own settings.

Words: t2t_12 | t2t_14 | deit_small, the sides of the exits' grids (7-10-14 | 7-14 | 7-10), what a
transformer reuses of the one before (both | features | relations | none), cascade | single (the
last transformer alone, by the labels), imagenet | cifar10 | cifar100 | digits, init_from=FILE (the
weights that a transfer to CIFAR starts from, spec of T2T-ViT's script), and for other images
tfds=NAME, imagefolder=PATH, arrayrecord=PATH or clips=PATH (vit_efficient/data/README.md).
"""
from typing import Literal, Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGES, Images, named_images

NAMES = {"t2t_12": "DVT_T2t_vit_12", "t2t_14": "DVT_T2t_vit_14", "deit_small": "DVT_Deit_small"}
SINGLE = {"t2t_12": "t2t_vit_12", "t2t_14": "t2t_vit_14", "deit_small": "deit_small_patch16_224"}
# Batch, learning rate as it stands, weight decay, epochs of warm-up and of cool-down: the authors'
# README; DeiT's.
RECIPES = {"t2t_12": (1024, 2e-3, 0.03, 20.0, 10), "t2t_14": (512, 5e-4, 0.05, 20.0, 10),
           "deit_small": (1024, 1e-3, 0.05, 5.0, 0)}
# (kernel, stride, padding) of a tokenizer by the side of its grid.
SPLITS = {"t2t": {7: (14, 8, 3), 10: (11, 6, 5), 14: (7, 4, 2)},
          "deit": {7: (32, 32, 0), 10: (23, 23, 3), 14: (16, 16, 0)}}
REUSE = {"both": (True, True), "features": (True, False), "relations": (False, True),
         "none": (False, False)}


def get_config(backbone: Literal["t2t_12", "t2t_14", "deit_small"] = "t2t_12",
               exits: Literal["7-10-14", "7-14", "7-10"] = "7-10-14",
               reuse: Literal["both", "features", "relations", "none"] = "both",
               depth: Literal["cascade", "single"] = "cascade",
               data: Literal["imagenet", "cifar10", "cifar100", "digits"] = "imagenet", *,
               init_from: str | None = None, **images: Unpack[Images]) -> ConfigDict:
    """The authors' commands and defaults: 300 epochs and, of the T2T-ViTs, 10 of cool-down."""
    if data.startswith("cifar") and not init_from:
        raise ValueError(f"{data}: is a transfer, init_from=FILE names the weights that it starts "
                         "from")
    batch_size, lr, weight_decay, warmup, cooldown = RECIPES[backbone]
    deit = backbone == "deit_small"
    feature_reuse, relation_reuse = REUSE[reuse]
    splits = SPLITS["deit" if deit else "t2t"]
    config = ConfigDict(dict(
        seed=0, epochs=300.0 + cooldown, batch_size=batch_size, dtype="bfloat16",
        init_from=init_from or "",
        data=dict(image_size=224, **named_images(images, IMAGES[data])),
        augment=dict(crop="random_resized", interpolation="bicubic" if deit else "random",
                     randaugment=9.0, erase=0.25, mixup=0.8, cutmix=1.0, repeats=3 if deit else 1,
                     device=("mix", "normalize", "erase")),
        model=dict(name=NAMES[backbone], drop_path=0.1, feature_reuse=feature_reuse,
                   relation_reuse=relation_reuse,
                   splits=tuple(splits[int(side)] for side in exits.split("-"))),
        objective=dict(name="exits", label_smoothing=0.1),
        optim=dict(lr=lr, schedule="official", lag=0, warmup_epochs=warmup, warmup_lr=1e-6,
                   min_lr=1e-5, cooldown_epochs=cooldown, weight_decay=weight_decay),
        step=dict(ema_decay=0.99996)))
    if depth == "single":
        config.model = dict(name=SINGLE[backbone], drop_path=0.1)
        config.objective.name = "supervised"
    if data.startswith("cifar"):
        _transfer(config, "patch_embed" if deit else "tokens_to_token", depth == "single")
    if data == "digits":
        _digits(config)
    return config


def _transfer(config: ConfigDict, tokenizer: str, single: bool) -> None:
    """T2T-ViT's transfer to CIFAR: SGD, new heads, a hundredth of their rate for all else; class
    tokens and last norms stay. (The floor of the cosine is every part's.)"""
    inside = "" if single else "*/"
    moving = ["head/*", "blocks_*", f"{tokenizer}/*"]
    if tokenizer == "patch_embed":
        moving.append("pos_embed")
    if config.model.get("relation_reuse"):
        moving.append("relation_reuse_conv_*")
    config.update(dict(
        epochs=60.0, batch_size=64, init=dict(adapt=("heads",)),
        augment=dict(crop="padded", padding=28, interpolation="bilinear", randaugment=None,
                     erase=0.0, mixup=0.0, cutmix=0.0, repeats=1, eval_crop=1.0,
                     mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
        objective=dict(label_smoothing=0.0),
        optim=dict(method="sgd", momentum=0.9, weight_decay=5e-4, decay="all", no_decay=(),
                   lr=0.05, warmup_epochs=0.0, min_lr=2e-4, cooldown_epochs=0,
                   trained=tuple(inside + part for part in moving),
                   slower=((f"{inside}head/*", 1.0), ("*", 0.01))),
        step=dict(ema_decay=0.0)))


def _digits(config: ConfigDict) -> None:
    """Grids of 2, 4 and 8 for images of 32 pixels, a tiny DeiT each."""
    config.model = dict(name="dvt_deit", width=48, depth=2, num_heads=3, drop_path=0.0,
                        splits=((16, 16, 0), (8, 8, 0), (4, 4, 0)))
    config.update(dict(
        epochs=60.0, batch_size=64, dtype="float32",
        data=dict(image_size=32),
        augment=dict(scale=(0.6, 1.0), ratio=(0.85, 1.18), flip=0.0, interpolation="bicubic",
                     randaugment=None, erase=0.0, mixup=0.0, cutmix=0.0, repeats=1, eval_crop=1.0),
        objective=dict(name="exits"),
        loader=dict(threads=1),
        optim=dict(lr=3e-3, schedule="cosine", lag=1, warmup_epochs=5.0, warmup_lr=0.0, min_lr=0.0,
                   cooldown_epochs=0, weight_decay=0.05),
        step=dict(ema_decay=0.99),
        validation=dict(every_epochs=10.0),
        checkpoint=dict(every_epochs=10.0)))
