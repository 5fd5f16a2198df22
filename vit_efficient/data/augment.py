"""Config group `augment`: what happens to an image on the host and on the device.

`make_augment` turns the group's keys into an `Augment` of four functions: the loader calls `train`
and `evaluate` for an image on the host, the compiled steps `on_device` and `normalize` for a batch.
The transforms themselves stand in `data/host/` and `data/device/`.
"""
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
from PIL import Image

from vit_efficient.data.device.erasing import erase as erase_boxes
from vit_efficient.data.device.mixing import mix
from vit_efficient.data.device.normalize import normalize
from vit_efficient.data.host import crops as host
from vit_efficient.data.host.color import color_jitter as jitter, three_augment as one_of_three
from vit_efficient.data.host.randaugment import rand_augment
from vit_efficient.settings.values import Count, Fraction, NonNegative, Range, Whole

_Portion = Annotated[float, Range(0, 1, above=True)]
_Magnitude = Annotated[float, Range(0, 10)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Augment(NamedTuple):
    """`train(image, size, rng)` and `evaluate(image, size, rng=None)`, which draws nothing, on the
    host: uint8 [h, w, 3] -> uint8 [size, size, 3]; `on_device(batch, key, num_classes)` at the
    start of a training step, `normalize(batch)` at that of an evaluation; `repeats` as in
    `phases.Position`."""
    train: Callable
    evaluate: Callable
    on_device: Callable
    normalize: Callable
    repeats: int


def make_augment(*, crop: Literal["random_resized", "resize", "src", "center",
                                "padded"] = "random_resized",
                 scale: tuple[float, float] = (0.08, 1.0),
                 ratio: tuple[float, float] = (3 / 4, 4 / 3), padding: Whole = 0,
                 flip: Fraction = 0.5,
                 interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
                 randaugment: _Magnitude | None = None, three_augment: bool = False,
                 color_jitter: Fraction = 0.0, repeats: Count = 1, eval_crop: _Portion = 0.875,
                 mean: tuple[float, float, float] = IMAGENET_MEAN,
                 std: tuple[float, float, float] = IMAGENET_STD,
                 erase: Fraction = 0.0, erase_mode: Literal["pixel", "rand", "const"] = "pixel",
                 mixup: NonNegative = 0.0, cutmix: NonNegative = 0.0,
                 mix_probability: Fraction = 1.0, switch_probability: Fraction = 0.5,
                 device: tuple[str, ...] = ("normalize", "erase", "mix")) -> Augment:
    """On the host crop, flip, RandAugment or ThreeAugment and colour jitter, with Pillow; on the
    device, in the order of `device`, normalisation, erasing and mixing.

    Args:
      crop: "resize" trains on the whole image, squeezed to the square; "src" is DeiT III's simple
        random crop, "center" the evaluated centre, "padded" a square at a random place of the
        image, whose short side is resized to the square's and which `padding` surrounds.
        `scale` and `ratio` are read by "random_resized" alone.
      scale, ratio: least and largest share of the image's area, and width/height, of a crop.
      padding: black pixels around the resized image, of crop "padded" alone.
      flip: probability of mirroring.
      interpolation: of crops and RandAugment; "random" draws one, and evaluates with bicubic.
      randaugment: the magnitude m of `rand-m<m>-mstd0.5-inc1`; None is without.
      three_augment: one of grayscale, solarize and blur (DeiT III, with color_jitter = 0.3).
      color_jitter: brightness, contrast and saturation change by up to this share.
      repeats: images in a row made of one example (repeated augmentation; DeiT: 3).
      eval_crop: side of the evaluated centre, as a share of the resized short side.
      mean, std: of the pixels scaled to 0..1, red, green, blue.
      erase, erase_mode: probability of an erased box in an image, and what fills it.
      mixup, cutmix: alpha of their Beta distributions; 0 is without.
      mix_probability, switch_probability: that a batch is mixed; that it is by CutMix then, where
        there are both.
      device: the order on the device (DVT's is mix, normalize, erase); what is off is passed over.
    Raises:
      ValueError: values that do not go together.
    """
    _check_values(crop, padding, scale, ratio, std, randaugment, three_augment, color_jitter)
    transforms = {
        "normalize": partial(normalize, mean=tuple(mean), std=tuple(std)),
        "erase": erase and partial(erase_boxes, probability=erase, mode=erase_mode),
        "mix": (mixup or cutmix) and partial(mix, mixup=mixup, cutmix=cutmix,
                                             probability=mix_probability,
                                             switch_probability=switch_probability)}
    changes = (
        randaugment is not None and partial(rand_augment, magnitude=randaugment,
                                            interpolation=interpolation),
        three_augment and one_of_three,
        color_jitter and partial(jitter, strength=color_jitter))
    square = partial(host.train, crop=crop, scale=tuple(scale), ratio=tuple(ratio),
                     padding=padding, flip=flip, interpolation=interpolation, eval_crop=eval_crop)
    train = partial(_train, square=square, changes=tuple(filter(None, changes)))
    evaluate = partial(host.evaluate, eval_crop=eval_crop,
                       interpolation="bicubic" if interpolation == "random" else interpolation)
    on_device = partial(_on_device, chain=_ordered(tuple(device), transforms))
    return Augment(train=train, evaluate=evaluate, on_device=on_device,
                   normalize=partial(transforms["normalize"], key=None), repeats=repeats)


def _train(image: np.ndarray, size: int, rng: np.random.Generator, *, square: Callable,
           changes: tuple[Callable, ...]) -> np.ndarray:
    image = square(image, size, rng)
    if not changes:
        return image
    changed = Image.fromarray(image)
    for change in changes:
        changed = change(changed, rng)
    return np.asarray(changed)


def _on_device(batch: dict, key: jax.Array, num_classes: int, *,
               chain: dict[str, Callable]) -> dict:
    if "mix" in chain and batch["label"].ndim == 1:
        batch = batch | {"label": jax.nn.one_hot(batch["label"], num_classes)}
    for i, transform in enumerate(chain.values()):
        batch = transform(batch, jax.random.fold_in(key, i))
    return batch


def _ordered(device: tuple[str, ...],
             transforms: dict[str, Callable | float]) -> dict[str, Callable]:
    """The transforms that are on, in the order of `device`; those that are off are 0."""
    key = f"augment.device = {device}"
    if unknown := [name for name in device if name not in transforms]:
        raise ValueError(f"{key}: {unknown[0]!r} is none of {', '.join(transforms)}")
    for name, transform in transforms.items():
        if device.count(name) > 1 or (transform and name not in device):
            raise ValueError(f"{key}: must hold {name!r} once")
    if "erase" in device[:device.index("normalize")]:
        raise ValueError(f"{key}: 'erase' comes after 'normalize', whose scale its noise has")
    return {name: transforms[name] for name in device if transforms[name]}


def _check_values(crop: str, padding: int, scale: tuple[float, float], ratio: tuple[float, float],
                  std: tuple[float, float, float], randaugment: float | None, three_augment: bool,
                  color_jitter: float) -> None:
    if padding and crop != "padded":
        raise ValueError(f"augment.padding = {padding}: only augment.crop = padded reads it, this "
                         f"is {crop}")
    for key, (low, high), most in ("scale", scale, 1), ("ratio", ratio, float("inf")):
        if not 0 < low <= high <= most:
            limit = f" and at most {most:g}" if most < float("inf") else ""
            raise ValueError(f"augment.{key} = {(low, high)}: least and largest, above 0{limit}")
    if min(std) <= 0:
        raise ValueError(f"augment.std = {tuple(std)}: above 0")
    if randaugment is not None and (three_augment or color_jitter):
        other = "three_augment" if three_augment else f"color_jitter = {color_jitter:g}"
        raise ValueError(f"augment.randaugment = {randaugment:g}: not together with augment."
                         f"{other} (the papers' trainer drops it then); None is without")
