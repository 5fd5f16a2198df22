"""Image folders: `path/train/<class>/<image>` and `path/val` or `path/test` beside it.

`data/sources.open_data` calls `open_folders` for `data.source = imagefolder`, `jobs/prepare` for
the folder that it packs. Classes and files are ordered by name, as torchvision's ImageFolder orders
them, so that example i is the same in both and a stored teacher's rows fit.

    train, val = open_folders(Path("/data/flowers"), "data.path")
    image, label = train[0]
"""
from collections.abc import Callable
import os
from pathlib import Path

import numpy as np

from vit_efficient.data.formats.encoded import Encoded, EncodedSource
from vit_efficient.data.formats.retry import patiently

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFolder(EncodedSource):
    """`folder/<class>/<image>`: labels are places in `classes`, files in the order of their names.

    As torchvision's ImageFolder; but hidden files and files without an image's extension are left
    out, images stand directly in their class folder, and a class folder may be empty here
    (`open_folders` refuses that in training).
    """
    HOLDS = f"images ({' '.join(EXTENSIONS)})"

    def __init__(self, folder: Path, classes: tuple[str, ...]):
        self.folder, self.classes = Path(folder), classes
        self.names, self.labels = listed(self.folder, classes, _image_names)

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> Encoded:
        path = f"{self.folder}/{self.short_name(i)}"
        return Encoded(patiently(lambda: _bytes(path), path), path, int(self.labels[i]))

    def short_name(self, i: int) -> str:
        """`<class>/<image>`."""
        return f"{self.classes[self.labels[i]]}/{os.fsdecode(self.names[i].item())}"

    def __str__(self) -> str:
        return str(self.folder)


def listed(folder: Path, classes: tuple[str, ...],
           inside: Callable[[Path], list[bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """What is `inside` each class folder, class by class: names bytes [n], labels int32 [n]."""
    names, labels = [], []
    for label, name in enumerate(classes):
        found = inside(folder / name)
        names += found
        labels += [label] * len(found)
    # Fixed-width bytes: a million str objects would be copied into every worker process.
    return np.array(names, np.bytes_), np.array(labels, np.int32)


def open_folders(path: Path, key: str, kind: Callable = ImageFolder) -> tuple:
    """The training and validation examples under `path`, which is the value of the config key or
    flag `key`, each a `kind(folder, classes)`; ValueError says what is missing there."""
    if not path.is_dir():
        raise ValueError(f"{key} = '{path}': must be a folder that holds train/ and val/")
    validation = next((path / name for name in ("val", "test") if (path / name).is_dir()), None)
    if validation is None or not (path / "train").is_dir():
        missing = "train/" if validation else "val/ (or test/)"
        raise ValueError(f"{key} = '{path}': there is no {missing} in it")
    classes = _class_names(path / "train", key)
    train = kind(path / "train", classes)
    present = np.bincount(train.labels, minlength=len(classes))
    if empty := [name for name, count in zip(classes, present) if not count]:
        raise ValueError(f"{key} = '{path}': no {kind.HOLDS} in {path / 'train' / empty[0]}"
                         + (f" and {len(empty) - 1} other class folders" if empty[1:] else ""))
    if foreign := sorted(set(_class_names(validation, key)) - set(classes)):
        raise ValueError(f"{key} = '{path}': {validation / foreign[0]} is no class of train/"
                         + (f", nor are {len(foreign) - 1} others" if foreign[1:] else ""))
    val = kind(validation, classes)
    if not len(val):
        raise ValueError(f"{key} = '{path}': no {kind.HOLDS} in {validation}")
    return train, val


def _class_names(folder: Path, key: str) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise ValueError(f"{key} = '{folder.parent}': no class folders in {folder}")
    return tuple(names)


def _image_names(folder: Path) -> list[bytes]:
    """Sorted; a class that this split does not have holds none."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:
        return []
    return sorted(os.fsencode(name) for name in names if is_image(name))


def is_image(name: str) -> bool:
    """True for a file name with an image's extension that is not hidden."""
    return name.lower().endswith(EXTENSIONS) and name[0] != "."


def _bytes(path: str) -> bytes:
    """A file's; a `Path` would take as long as reading a small one."""
    with open(path, "rb") as file:
        return file.read()
