"""Config group `data`: where images and labels come from; indexed, so that any step can be had."""
from collections.abc import Mapping, Sequence
import importlib
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import numpy as np

from vit_efficient.settings.values import Count, Whole

# What the papers train on; a recipe's images where its words name none.
IMAGENET = {"source": "tfds", "name": "imagenet2012"}
# The same by the word of a recipe that has one for small images.
IMAGES = {"imagenet": IMAGENET, "cifar10": {"source": "tfds", "name": "cifar10"},
          "cifar100": {"source": "tfds", "name": "cifar100"}, "digits": {"source": "digits"}}
CLIP_FRAMES = 8     # seen of a clip unless the config says another number (Scala on UCF101)


class Source(Protocol):
    """Examples by number; `str(source)` names it in messages. Worker processes get it pickled. Of
    clips `frames` are seen, it is None where an example is one image."""
    classes: tuple[str, ...]
    max_bad_records: int
    frames: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Image uint8 [h, w, 3] of any size (or a `jpeg.Jpeg`, which reads like one), or a
        `clips.Clip`, and label; `badrecords.BadImage` for a bad record, of which a run accepts
        `max_bad_records`."""


class Data(NamedTuple):
    """`image_size` is the side of the images that the model sees, unless a phase says another."""
    train: Source
    val: Source
    num_classes: int
    image_size: int


def open_data(*, source: Literal["tfds", "imagefolder", "arrayrecord", "clips", "digits"],
              name: str = "", path: str = "", image_size: Count = 224,
              frames: Count | None = None, max_bad_records: Whole = 0) -> Data:
    """The training and validation images of a run; nothing is decoded yet.

    Args:
      source: "tfds" (data set `name` of TensorFlow Datasets, prepared in `path` or where
        TensorFlow Datasets keeps its data), "imagefolder" (`path/train/<class>/*.jpg` and
        `path/val` or `path/test`, as torchvision reads them), "arrayrecord" (the folder `path`
        that `--job=prepare` made), "clips" (`path/train/<class>/<clip>/<frame>.jpg` and
        `path/val` or `path/test`) or "digits" (1,797 images of 8 by 8 that come with scikit-learn,
        for tests and demonstrations).
      image_size: side of the images that the model sees.
      frames: that the model sees of a clip; its outputs for them are averaged. None for images.
      max_bad_records: how many distinct records that hold no whole image a run accepts in
        training, from one start to the next, and in each evaluation, all processes together.
        Training takes the next good one in its place, an evaluation leaves it out. A process stops
        at once where it alone has met more; what they met together is counted at checkpoints,
        evaluations and the end of one.
    Raises:
      ValueError: `path` or `name` is missing, not read by this source, or does not hold what it
        must.
    """
    if bool(frames) != (source == "clips"):
        raise ValueError(f"data.frames = {frames}: data.source = {source} needs it: 8, the frames "
                         "that the model sees of a clip" if source == "clips" else
                         f"data.frames = {frames}: data.source = {source} holds images, leave it "
                         "None; data.source = clips reads frames")
    reads = {"tfds": ("name", "path"), "digits": ()}.get(source, ("path",))
    for key, value in (("name", name), ("path", path)):
        if value and key not in reads:
            raise ValueError(f"data.{key} = {value!r}: data.source = {source} does not read it, "
                             "leave it empty")
    if reads and not (name if source == "tfds" else path):
        example = "imagenet2012" if source == "tfds" else "the folder with the images"
        raise ValueError(f"data.{reads[0]} = '': data.source = {source} needs it: {example}")
    # A source's packages take seconds to import: only that of this run is.
    module = lambda name: importlib.import_module(f"vit_efficient.data.formats.{name}")
    if source == "digits":
        train, val = module("digits").open_digits()
    elif source == "imagefolder":
        train, val = module("folders").open_folders(Path(path).expanduser(), "data.path")
    elif source == "clips":
        train, val = module("clips").open_clips(Path(path).expanduser(), "data.path", frames)
    elif source == "arrayrecord":
        train, val = module("records").open_records(Path(path).expanduser())
    else:
        train, val = module("tfds").open_tfds(name, path)
    train.max_bad_records = val.max_bad_records = max_bad_records
    return Data(train=train, val=val, num_classes=len(train.classes), image_size=image_size)


class Images(TypedDict, total=False):
    """A recipe's words for its images, of which at most one is given: `tfds=NAME` of TensorFlow
    Datasets, `imagefolder=PATH` with train|val/<class>/*.jpg, `arrayrecord=PATH` that
    `--job=prepare` made, `clips=PATH` with train|val/<class>/<clip>/<frame>.jpg, of which 8 frames
    are seen. A recipe takes them as `**images: Unpack[Images]`."""
    tfds: str
    imagefolder: str
    arrayrecord: str
    clips: str


def named_images(images: Images, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the group `data` for a recipe's words, or the `usual` ones where none is given;
    ValueError for several."""
    if len(images) > 1:
        raise ValueError(f"{' and '.join(f'{word}=' for word in images)}: one source of images")
    for source, place in images.items():
        named = {"source": source, "name" if source == "tfds" else "path": place}
        return named | ({"frames": CLIP_FRAMES} if source == "clips" else {})
    return dict(usual)


class Chosen:
    """The examples of `source` at `indices`, in their order, as a source of its own."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source, self.indices = source, indices
        self.classes, self.frames = source.classes, source.frames
        self.max_bad_records = source.max_bad_records

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.source[int(self.indices[i])]

    def __str__(self) -> str:
        return str(self.source)


class Arrays:
    """Images in memory: uint8 [n, h, w, 3] and labels int [n]."""
    max_bad_records, frames = 0, None

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...],
                 name: str = "arrays"):
        self.images, self.labels, self.classes, self.name = images, labels, classes, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], int(self.labels[i])

    def __str__(self) -> str:
        return self.name
