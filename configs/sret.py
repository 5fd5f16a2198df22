"""SReT on ImageNet-1k (ECCV 2022): recursive blocks with sliced attention.

Expected top-1 (the authors' numbers): sret_t 76.0, sret_lt 76.7, sret_s 81.9; without slices 76.1,
76.8, 82.0.

    python -m vit_efficient.main --config=configs/sret.py:imagefolder=PATH --workdir=DIR
    python -m vit_efficient.main --config=configs/sret.py:model=sret_s_wo_slice,imagefolder=PATH \\
        --config.init_from=SReT_S_wo_slice.pth --job=evaluate

Words: imagefolder=PATH (a folder with train|val/<class>/*.jpg), model=NAME; a NAME that ends with
_384 or _512 takes images of that size. Sliced models permute tokens, in evaluation too: always the
same way here. Of the recipe's augmentation there is crop and flip so far.
"""
from ml_collections import ConfigDict


def get_config(*, model: str = "sret_lt", imagefolder: str = "") -> ConfigDict:
    """The defaults of DeiT's main.py, learning rate and warm-up by the authors' README."""
    side = model.rpartition("_")[2]
    return ConfigDict(dict(
        seed=0, epochs=300.0, batch_size=1024, dtype="bfloat16",
        data=dict(source="imagefolder", path=imagefolder,
                  image_size=int(side) if side in ("384", "512") else 224),
        model=dict(name=model),
        objective=dict(name="supervised", label_smoothing=0.1),
        optim=dict(lr=1e-3, lr_batch=512, schedule="official", warmup_epochs=30.0, warmup_lr=1e-6,
                   min_lr=1e-5, weight_decay=0.05),
        step=dict(ema_decay=0.99996)))
