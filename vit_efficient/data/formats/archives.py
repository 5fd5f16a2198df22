"""The official tars of ImageNet-1k (ILSVRC 2012), indexed in place: nothing is unpacked.

Only `jobs/prepare` reads them, once, to make a set of large files: a folder with
`ILSVRC2012_img_train.tar` (a tar of a thousand tars, one a class) and `ILSVRC2012_img_val.tar`,
whose 50,000 labels stand in TensorFlow Datasets. An index holds where each image lies in its tar;
the bytes are read when they are asked for.

    train, val = open_archives(Path("/data/imagenet"), "--images")
    train.encoded(0)                                  # bytes, name and label of the first image
"""
import importlib.util
from pathlib import Path
import re
import tarfile

import numpy as np

from vit_efficient.data.formats.encoded import Encoded, EncodedSource
from vit_efficient.data.formats.retry import patiently

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

Member = tuple[str, int, int]                             # name, offset in the file, bytes


class TarImages(EncodedSource):
    """Images at known places of one tar, in the order of `labels` and then of their names."""

    def __init__(self, path: Path, classes: tuple[str, ...], labels: list[int],
                 members: list[Member]):
        self.path, self.classes = path, classes
        order = sorted(range(len(members)), key=lambda i: (labels[i], members[i][0]))
        self.labels = np.array([labels[i] for i in order], np.int32)
        self.names = [members[i][0] for i in order]
        self.places = np.array([members[i][1:] for i in order], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> Encoded:
        name = f"{self.path}: {self.names[i]}"
        return Encoded(patiently(lambda: self._read(*self.places[i].tolist()), name), name,
                       int(self.labels[i]))

    def short_name(self, i: int) -> str:
        """`<class>/<image>` in training, the file's name in validation."""
        return self.names[i]

    def _read(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def __str__(self) -> str:
        return str(self.path)


def open_archives(path: Path, key: str) -> tuple[TarImages, TarImages]:
    """The training and validation images of the two tars in `path`, the value of the flag `key`;
    ValueError says what is wrong with them."""
    for name in (TRAIN, VAL):
        if not (path / name).is_file():
            raise ValueError(f"{key} = '{path}': there is no {name} in it")
    labels = validation_labels()
    classes = tuple(sorted(set(labels)))
    inside = [member for member in _members(path / TRAIN) if member[0].endswith(".tar")]
    if found := {Path(name).stem for name, *_ in inside} ^ set(classes):
        raise ValueError(f"{path / TRAIN}: must hold one tar for each of the {len(classes)} classes"
                         f"; {len(found)} are missing or foreign, as {min(found)}.tar")
    members, numbers = [], []
    for name, offset, _ in inside:
        images = _members(path / TRAIN, offset)
        if not images:
            raise ValueError(f"{path / TRAIN}: {name} holds no images")
        members += [(f"{Path(name).stem}/{image}", *place) for image, *place in images]
        numbers += [classes.index(Path(name).stem)] * len(images)
    train = TarImages(path=path / TRAIN, classes=classes, labels=numbers, members=members)
    members = _members(path / VAL)
    matches = [re.search(r"ILSVRC2012_val_(\d{8})\.JPEG$", name) for name, *_ in members]
    if {int(match[1]) for match in matches if match} != set(range(1, len(labels) + 1)) or (
            len(members) != len(labels)):
        raise ValueError(f"{path / VAL}: must hold ILSVRC2012_val_00000001.JPEG to "
                         f"{len(labels):08d}.JPEG, holds {len(members)} files")
    numbers = [classes.index(labels[int(match[1]) - 1]) for match in matches]
    return train, TarImages(path=path / VAL, classes=classes, labels=numbers, members=members)


def validation_labels() -> list[str]:
    """The class of each of the 50,000 validation images, in the order of their numbers."""
    package, = importlib.util.find_spec("tensorflow_datasets").submodule_search_locations
    file = Path(package, "datasets", "imagenet2012", "validation_labels.txt")
    return file.read_text(encoding="utf-8").split()


def _members(path: Path, offset: int = 0) -> list[Member]:
    """The files of the tar that begins at byte `offset` of `path`; offsets are of `path`."""
    with open(path, "rb") as file:
        file.seek(offset)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                found = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    # tarfile takes a damaged header, except the first one, for the end.
                    raise tarfile.ReadError(f"damaged at byte {tar.offset}")
                return found
        except tarfile.TarError as error:
            raise ValueError(f"{path}: no whole tar at byte {offset} ({error})") from error
