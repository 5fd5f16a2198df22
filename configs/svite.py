"""SViTE, S2ViTE and SViTE+ on ImageNet-1k (NeurIPS 2021): DeiT with sparse weights, fewer heads and
neurons, fewer tokens.

Expected top-1 (the authors' numbers): base, 40 % structured, 82.22; base, 40 % unstructured, 81.56;
small, 50 % unstructured with 187 tokens 80.18, with 177 tokens 79.91.

    python -m vit_efficient.main --config=configs/svite.py:imagefolder=PATH --job=evaluate \\
        --config.init_from=deit_base_structure_40_82.22.pth
    python -m vit_efficient.main --job=evaluate --config.model.token_number=187 \\
        --config=configs/svite.py:model=svite_small_patch16_224,imagefolder=PATH \\
        --config.init_from=deit_small_unstructure_50_sparseinput_0.95_80.18.pth

Words: model=NAME, and for other images than ImageNet tfds=NAME, imagefolder=PATH, arrayrecord=PATH
or clips=PATH (vit_efficient/data/README.md). The zeros of a sparse file stand in its weights, so
evaluation is complete; a selector takes its likeliest tokens. Sparse training is to come: so far
this trains the dense model.
"""
from typing import Unpack

from ml_collections import ConfigDict

from vit_efficient.data.sources import IMAGENET, Images, named_images


def get_config(*, model: str = "deit_base_patch16_224", **images: Unpack[Images]) -> ConfigDict:
    """The defaults of the authors' main.py, epochs and batches of their commands."""
    return ConfigDict(dict(
        seed=0, epochs=600.0, batch_size=1024 if "_base_" in model else 512, dtype="bfloat16",
        data=dict(image_size=384 if model.endswith("_384") else 224,
                  **named_images(images, IMAGENET)),
        augment=dict(crop="random_resized", interpolation="bicubic", randaugment=9.0, erase=0.25,
                     mixup=0.8, cutmix=1.0, repeats=3, device=("normalize", "erase", "mix")),
        model=dict(name=model, drop_path=0.1),
        objective=dict(name="supervised", label_smoothing=0.1),
        optim=dict(lr=5e-4, lr_batch=512, schedule="official", warmup_epochs=5.0, warmup_lr=1e-6,
                   min_lr=1e-5, weight_decay=0.05),
        step=dict(ema_decay=0.99996)))
