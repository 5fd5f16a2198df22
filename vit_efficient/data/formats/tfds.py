"""Data sets of TensorFlow Datasets, prepared as ArrayRecord and read without TensorFlow.

`data/sources.open_data` calls `open_tfds` for `data.source = tfds`. The set must have been prepared
once, with TensorFlow, as ArrayRecord, the one of its formats with random access; what is missing is
said with the command that prepares it. From then on the files alone are read: a batch asks for
images by number, and decodes them itself.

    train, val = open_tfds("imagenet2012", "")        # where TensorFlow Datasets keeps its data
    image, label = train[0]
"""
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from vit_efficient.data.formats.encoded import Encoded, EncodedSource
from vit_efficient.data.formats.records import Shards
from vit_efficient.settings.values import nearest

VALIDATION = ("validation", "val", "test")                # the first of them that a data set has


class TfdsSplit(EncodedSource):
    """One split of a data set, a source as `tfds.data_source` gives it, images left encoded."""

    def __init__(self, source, name: str, split: str):
        features = source.dataset_info.features
        self.classes, self.name, self.split = tuple(features["label"].names), name, split
        self._features, self._decoders = features, source.decoders
        self._shards = Shards(source.data_source, str(self))

    def __len__(self) -> int:
        return len(self._shards)

    def encoded(self, i: int) -> Encoded:
        example = self._features.deserialize_example_np(self._shards.read(i),
                                                        decoders=self._decoders)
        return Encoded(example["image"], f"{self}, example {i}", int(example["label"]))

    def __str__(self) -> str:
        return f"{self.name} {self.split}"


def open_tfds(name: str, path: str) -> tuple[TfdsSplit, TfdsSplit]:
    """The training and validation images of the data set `name` (NAME, NAME/CONFIG, NAME:VERSION)
    in the folder `path`, by default the one that TensorFlow Datasets uses.

    Raises ValueError for an unknown name, a set that is not prepared, prepared as TFRecord, or one
    without labelled images, and says what to do.
    """
    try:
        # From the files: a version that this package does not write is read too, and no download or
        # manual step is asked for.
        builder = read_only_builder.builder_from_files(name, data_dir=path or None)
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(_how_to_prepare(name, path)) from None
    formats = {str(format.value) for format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"data.name = {name}: {builder.data_dir} is prepared as {', '.join(sorted(formats))}, "
            "which has no random access. Once, with requirements-prepare.txt installed: python -m "
            f"tensorflow_datasets.scripts.convert_format --dataset_version_dir={builder.data_dir} "
            "--out_file_format=array_record")
    _check_features(name, builder.info.features)
    train, val = splits = "train", _validation(name, builder.info.splits)
    sources = builder.as_data_source(split=list(splits),
                                     decoders={"image": tfds.decode.SkipDecoding()})
    return TfdsSplit(sources[0], name, train), TfdsSplit(sources[1], name, val)


def _how_to_prepare(name: str, path: str) -> str:
    """What to say of a set that is not there."""
    bare, _, config = name.partition(":")[0].partition("/")
    known = tfds.list_builders(with_community_datasets=False)
    if bare not in known:
        return (f"data.name = {name}: TensorFlow Datasets has no such data set, "
                f"{nearest(bare, known)}; other images: data.source = imagefolder")
    made = tfds.builder_cls(bare)
    if config and config not in made.builder_configs:
        return f"data.name = {name}: {nearest(config, made.builder_configs)}"
    folder = Path(path or tfds.core.constants.DATA_DIR).expanduser()
    try:
        made(data_dir=folder)
    except FileNotFoundError as error:      # 4.9.10 lacks the class names of iNaturalist 2021
        return (f"data.name = {name}: TensorFlow Datasets {tfds.__version__} cannot prepare it "
                f"({error}). Unpack its images as PATH/train/<class>/ and PATH/val/<class>/ and "
                "give data.source = imagefolder, data.path = PATH")
    manual = " ".join((made.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    return (f"data.name = {name}: is not prepared in {folder}. Once, with requirements-prepare.txt "
            "installed: python -c \"import tensorflow_datasets as tfds; tfds.builder("
            f"'{name}', data_dir='{folder}', file_format='array_record').download_and_prepare("
            + ("download_config=tfds.download.DownloadConfig(manual_dir='FOLDER'))\". FOLDER: "
               + manual if manual else ")\""))


def _check_features(name: str, features) -> None:
    found = {key: type(feature) for key, feature in features.items()}
    if (found.get("image"), found.get("label")) != (tfds.features.Image, tfds.features.ClassLabel):
        what = ", ".join(f"{key} ({kind.__name__})" for key, kind in sorted(found.items()))
        raise ValueError(f"data.name = {name}: must have an image and a class label, has {what}")


def _validation(name: str, splits: Iterable[str]) -> str:
    splits = list(splits)
    found = [split for split in VALIDATION if split in splits]
    if "train" not in splits or not found:
        raise ValueError(f"data.name = {name}: must have the splits train and one of "
                         f"{', '.join(VALIDATION)}; prepared are {', '.join(splits)}")
    return found[0]
