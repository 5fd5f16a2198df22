"""Config group `data`: where images and labels come from; indexed, so that any step can be had."""
import os
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from vit_efficient.data import images, order
from vit_efficient.limits import Count

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# The digits' validation images were drawn once, with this seed, and never chosen by a result.
_DIGITS_SPLIT_SEED = 1797


class Source(Protocol):
    """Examples by number; `str(source)` names it in messages. Worker processes get it pickled."""
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Image uint8 [h, w, 3] of any size, and label."""


class Data(NamedTuple):
    """`image_size` is the side of the images that the model sees, unless a phase says another."""
    train: Source
    val: Source
    num_classes: int
    image_size: int


def open_data(*, source: Literal["digits", "imagefolder"], path: str = "",
              image_size: Count = 224) -> Data:
    """The training and validation images of a run; nothing is decoded yet.

    Args:
      source: "digits" (1,797 images of 8 by 8 that come with scikit-learn, for tests and
        demonstrations) or "imagefolder" (`path/train/<class>/*.jpg` and `path/val` or `path/test`,
        as torchvision reads them).
      path: the folder of an "imagefolder".
      image_size: side of the images that the model sees.
    Raises:
      ValueError: `path` does not hold what it must.
    """
    if source == "digits":
        if path:
            raise ValueError(f"data.path = {path!r}: digits come with scikit-learn, leave it empty")
        train, val = _digits()
    else:
        train, val = _folders(path)
    return Data(train, val, len(train.classes), image_size)


class Arrays:
    """Images in memory: uint8 [n, h, w, 3] and labels int [n]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...],
                 name: str = "arrays"):
        self.images, self.labels, self.classes, self.name = images, labels, classes, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], int(self.labels[i])

    def __str__(self) -> str:
        return self.name


def _digits() -> tuple[Arrays, Arrays]:
    """Gray levels 0 to 16 as 0 to 255 in three equal channels; a fifth of each class validates."""
    from sklearn.datasets import load_digits
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, -1)
    val = np.zeros(len(pixels), bool)
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        first = np.arange(round(len(members) / 5))
        val[members[order.shuffled(first, len(members), _DIGITS_SPLIT_SEED, label)]] = True
    classes = tuple(map(str, digits.target_names))
    return (Arrays(pixels[~val], digits.target[~val], classes, "digits train"),
            Arrays(pixels[val], digits.target[val], classes, "digits val"))


class ImageFolder:
    """`folder/<class>/<image>`: labels are places in `classes`, files in the order of their names.

    As torchvision's ImageFolder: any mode that Pillow reads becomes RGB (an alpha channel is
    dropped) and an EXIF orientation is ignored. Hidden files and files without an image's extension
    are left out; images stand directly in their class folder, and a class folder may be empty here
    (`open_data` refuses that in training).
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]):
        self.folder, self.classes = Path(folder), classes
        names, labels = [], []
        for label, name in enumerate(classes):
            files = _image_names(self.folder / name)
            names += files
            labels += [label] * len(files)
        # Fixed-width bytes: a million str objects would be copied into every worker process.
        self.names, self.labels = np.array(names, np.bytes_), np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        label = int(self.labels[i])
        name = os.fsdecode(self.names[i].item())
        path = self.folder / self.classes[label] / name
        return images.decode(path.read_bytes(), str(path)), label

    def __str__(self) -> str:
        return str(self.folder)


def _folders(path: str) -> tuple[ImageFolder, ImageFolder]:
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise ValueError(f"data.path = {path!r}: must be a folder that holds train/ and val/")
    validation = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if validation is None or not (root / "train").is_dir():
        missing = "train/" if validation else "val/ (or test/)"
        raise ValueError(f"data.path = {path!r}: there is no {missing} in it")
    classes = _class_names(root / "train")
    train = ImageFolder(root / "train", classes)
    present = np.bincount(train.labels, minlength=len(classes))
    if empty := [name for name, count in zip(classes, present) if not count]:
        raise ValueError(f"data.path = {path!r}: no images ({' '.join(EXTENSIONS)}) in "
                         f"{root / 'train' / empty[0]}"
                         + (f" and {len(empty) - 1} other class folders" if empty[1:] else ""))
    if foreign := sorted(set(_class_names(validation)) - set(classes)):
        raise ValueError(f"data.path = {path!r}: {validation / foreign[0]} is no class of train/"
                         + (f", nor are {len(foreign) - 1} others" if foreign[1:] else ""))
    val = ImageFolder(validation, classes)
    if not len(val):
        raise ValueError(f"data.path = {path!r}: no images in {validation}")
    return train, val


def _class_names(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise ValueError(f"data.path = {str(folder.parent)!r}: no class folders in {folder}")
    return tuple(names)


def _image_names(folder: Path) -> list[bytes]:
    """Sorted; a class that this split does not have holds none."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(os.fsencode(name) for name in names
                  if name.lower().endswith(EXTENSIONS) and name[0] != ".")
