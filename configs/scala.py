"""Scala on ImageNet-1k (NeurIPS 2024): one DeiT that is a classifier at many widths; its transfer.

Expected top-1 at widths 0.25, 0.5, 0.75, 1 (the authors' numbers): S with 13 widths, 100 epochs:
58.7, 68.3, 73.3, 76.1; B with 13 widths, 300 epochs: 75.3, 79.3, 81.2, 82.0. A tiny model on
digits, four minutes of processor time: 96, 97, 98, 98; on CIFAR-10, 66 minutes: 59, 66, 68, 68.

    python -m vit_efficient.main --config=configs/scala.py:imagefolder=PATH,teacher=deit_small.pth
    python -m vit_efficient.main --config=configs/scala.py:base,7,imagefolder=PATH,teacher=FILE
    python -m vit_efficient.main --config=configs/scala.py:digits
    python -m vit_efficient.main --config=configs/scala.py:digits --config.model.name=asvit_tiny
    python -m vit_efficient.main --config=configs/scala.py:cifar10,imagefolder=PATH
    python -m vit_efficient.main --config=configs/scala.py:base,7,imagefolder=PATH --job=evaluate \\
        --config.init_from=scala_b_7.pth

Transfer by a linear probe, one classifier for all widths on features that stay as they are. On
UCF101 (8 frames, 50 epochs) the authors report 0.6, 0.6, 1.5, 1.1 points more than for nets trained
separately, at the same widths, and no accuracies. What this recipe optimises with is ours. The last
command probes a separately trained net.

    python -m vit_efficient.main --config=configs/scala.py:small,13,probe=scala_s_13.pth,clips=PATH
    python -m vit_efficient.main --config=configs/scala.py:probe=DIR,imagefolder=PATH
    python -m vit_efficient.main --config=configs/scala.py:probe=deit_small.pth,clips=PATH \\
        --config.model.name=deit_small_patch16_224

`foundation` takes every cross-entropy out and learns from a foundation model's features alone. The
authors' Scala-B taught by DINOv2-B, 300 epochs: linear probes' average over 12 data sets 84.2, 80.6
and 76.8 at widths 1, 0.5 and 0.25. They published neither its code nor its losses: ours is a
generalisation after both papers (vit_efficient/papers/scala/foundation.py), of no claimed parity,
and was not run at that size.

    python -m vit_efficient.main --config=configs/scala.py:base,foundation,imagefolder=PATH,\\
        features=DIR

Words: small | base, the number of widths (25 | 13 | 7 | 4), imagenet | cifar10 | digits, labels |
foundation;

tfds=, imagefolder=, arrayrecord=, clips=
               other images (vit_efficient/data/README.md)
teacher=FILE   a DeiT of the same size: deit_small.pth, deit_base.pth; training by labels needs it,
               except on digits and cifar10
features=DIR   with `foundation`, in its place: the class tokens of any model for the same images,
               as --job=features or torch writes them (format: vit_efficient/data/stored.py)
separate=0.5   the paper's comparison: the net of that width alone, a plain DeiT with as many heads,
               taught by the labels
probe=FILE     what is probed: an official file, an export or the workdir of a run
"""
from typing import Literal, Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGES, Images, named_images
from vit_efficient.papers.deit.models import SIZES
from vit_efficient.settings.values import Fraction

GRANULARITY = {25: 0.03125, 13: 0.0625, 7: 0.125, 4: 0.25}
# Epochs, batch, learning rate of 512 images, epochs of warm-up, magnitude of RandAugment: the
# authors' commands.
RECIPES = {"small": (100.0, 1024, 2e-3, 3.0, 1.0), "base": (300.0, 512, 1e-3, 5.0, 4.0)}


def get_config(size: Literal["small", "base"] = "small", widths: Literal[25, 13, 7, 4] = 13,
               data: Literal["imagenet", "cifar10", "digits"] = "imagenet",
               taught: Literal["labels", "foundation"] = "labels", *, teacher: str | None = None,
               features: str | None = None, separate: Fraction | None = None,
               probe: str | None = None, **images: Unpack[Images]) -> ConfigDict:
    """The widths and the optimiser of the authors' commands; `digits` changes what a tiny model
    without a teacher asks for, the other words who teaches and what trains."""
    if features and (teacher or taught == "labels"):
        raise ValueError("features=: goes with the word foundation and without teacher=")
    if taught == "foundation" and (probe or separate is not None):
        raise ValueError("foundation: goes without separate= and probe=")
    if probe and teacher:
        raise ValueError("probe= and teacher=: a probe has no teacher")
    epochs, batch_size, lr, warmup, magnitude = RECIPES[size]
    config = ConfigDict(dict(
        seed=0, epochs=epochs, batch_size=batch_size, dtype="bfloat16",
        data=dict(image_size=224, **named_images(images, IMAGES[data])),
        augment=dict(crop="random_resized", interpolation="bicubic", randaugment=magnitude,
                     erase=0.25, mixup=0.8, cutmix=1.0, device=("normalize", "erase", "mix")),
        model=dict(name=f"deit_{size}_distilled_patch16_224_scala", drop_path=0.1,
                   granularity=GRANULARITY[widths]),
        objective=dict(name="scala", label_smoothing=0.1),
        phases=dict(name="full_net_first", full_epochs=10.0),
        optim=dict(lr=lr, lr_batch=512, schedule="official", warmup_epochs=warmup, warmup_lr=1e-6,
                   min_lr=1e-5, halved_epochs=10, weight_decay=0.05),
        step=dict(ema_decay=0.99996)))
    if teacher:
        config.teacher = dict(init_from=teacher, model=f"deit_{size}_patch16_224")
    if data != "imagenet":
        _small(config, data)
    if separate is not None:
        _separate(config, separate, config.model.get("width") or SIZES[size][0])
    if taught == "foundation":
        _foundation(config, features)
    if probe:
        _probe(config, probe, "clips" in images)
    return config


def _small(config: ConfigDict, data: str) -> None:
    """A tiny model for tiny images, without a teacher."""
    config.update(dict(
        batch_size=64, dtype="float32",
        augment=dict(scale=(0.6, 1.0), randaugment=None, erase=0.0, mixup=0.0, cutmix=0.0,
                     eval_crop=1.0),
        model=dict(name="scala", drop_path=0.0, granularity=0.25),
        objective=dict(taught="class"),
        optim=dict(lr=2e-3, lr_batch=64, schedule="cosine", halved_epochs=0)))
    if data == "digits":
        config.update(dict(
            epochs=80.0,
            data=dict(image_size=32),
            augment=dict(ratio=(0.85, 1.18), flip=0.0),
            loader=dict(threads=1),
            model=dict(width=96, depth=2, num_heads=6, patch_size=8),
            phases=dict(full_epochs=5.0),
            optim=dict(warmup_epochs=5.0),
            step=dict(ema_decay=0.99),
            validation=dict(every_epochs=10.0),
            checkpoint=dict(every_epochs=10.0)))
    else:
        config.update(dict(
            epochs=48.0,
            data=dict(image_size=36),
            model=dict(width=64, depth=2, num_heads=2, patch_size=6),
            objective=dict(label_smoothing=0.0),     # smoothed, a net says less to the next one
            phases=dict(full_epochs=1.0),
            optim=dict(warmup_epochs=2.0),
            step=dict(ema_decay=0.999),
            validation=dict(every_epochs=4.0)))


def _separate(config: ConfigDict, ratio: float, full: int) -> None:
    """The net of width `ratio` of a model of `full` channels, alone."""
    config.model.update(dict(name=config.model.name.replace("_distilled", ""),
                             width=round(ratio * full), granularity=None))
    smoothing = config.objective.label_smoothing
    config.objective = dict(name="separate", label_smoothing=smoothing, ratios=(1.0,))
    del config.phases


def _foundation(config: ConfigDict, features: str | None) -> None:
    """A teacher's tokens, or its stored class tokens, teach; as in Proteus no image is mixed."""
    config.model.name = config.model.name.replace("_distilled", "")
    config.augment.update(dict(mixup=0.0, cutmix=0.0))
    config.objective = dict(name="foundation", signal="class" if features else "tokens")
    if features:
        # The stored teacher has seen the whole centre: crops stay near it (our choice).
        config.augment.scale = (0.5, 1.0)
        config.teacher = dict(stored=features)


def _probe(config: ConfigDict, file: str, clips: bool) -> None:
    """A linear probe of `file`."""
    for group in "objective", "phases", "optim":
        del config[group]
    config.update(dict(
        epochs=50.0, batch_size=64 if clips else 256, init_from=file, init=dict(adapt=("heads",)),
        augment=dict(randaugment=None, erase=0.0, mixup=0.0, cutmix=0.0),
        objective=dict(name="probe"), phases=dict(name="constant"),
        optim=dict(lr=1e-3, weight_decay=0.0, trained=("head*",)), step=dict(ema_decay=0.0)))
