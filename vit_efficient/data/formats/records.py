"""Prepared sets: a folder of ArrayRecord shards, as `--job=prepare` writes it.

    train-00000-of-00313.array_record ... val-00012-of-00013.array_record
    dataset.json    {"format": 1, "classes": [names], "short_side": 256 or null,
                     "shards": {"train": [examples of each shard], "val": [...]}, ...}

A record is one example: the label (uint32) and the length of the name in bytes (uint16), both
little-endian, the name in UTF-8, then the bytes of the image file. The class folder and file that
it came from are the name. `dataset.json` is written last: a folder without it is unfinished.
"""
import copy
import json
from pathlib import Path
import struct

from array_record.python.array_record_data_source import ArrayRecordDataSource

from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.formats.encoded import Encoded, EncodedSource
from vit_efficient.data.formats.retry import patiently

INDEX, UNFINISHED, FORMAT = "dataset.json", "unfinished.json", 1
_HEAD = struct.Struct("<IH")


def pack(example: Encoded) -> bytes:
    """The record of an example, whose `name` has at most 65,535 bytes."""
    name = example.name.encode("utf-8", "surrogateescape")
    return _HEAD.pack(example.label, len(name)) + name + example.data


def unpack(record: bytes) -> Encoded:
    """The example of a record."""
    label, length = _HEAD.unpack_from(record)
    end = _HEAD.size + length
    return Encoded(record[end:], record[_HEAD.size:end].decode("utf-8", "surrogateescape"), label)


def shard_name(split: str, number: int, count: int) -> str:
    """The file of shard `number` of `count`."""
    return f"{split}-{number:05d}-of-{count:05d}.array_record"


class Shards:
    """The records of ArrayRecord files, by number. `source` reads them, `name` is for messages."""

    def __init__(self, source: ArrayRecordDataSource, name: str):
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> bytes:
        """Record `i`; BadImage where it is damaged, OSError where its file cannot be read."""
        return patiently(lambda: self._read(i), f"{self._name}, example {i}")

    def _read(self, i: int) -> bytes:
        try:
            return self._source[i]
        except RuntimeError as error:                     # all that ArrayRecord's reader raises
            if "Corrupted" in str(error):
                raise BadImage(f"{self._name}, example {i}: damaged ({error})") from error
            self._source = copy.copy(self._source)        # a reader that has failed goes on failing
            raise OSError(error) from error


class Records(EncodedSource):
    """One split of a prepared set: `counts` examples in its shards."""

    def __init__(self, folder: Path, split: str, counts: list[int], classes: tuple[str, ...]):
        self.folder, self.split, self.classes = folder, split, classes
        files = [f"{folder / shard_name(split, i, len(counts))}[0:{count}]"
                 for i, count in enumerate(counts)]
        self._shards = Shards(ArrayRecordDataSource(files), str(self))

    def __len__(self) -> int:
        return len(self._shards)

    def encoded(self, i: int) -> Encoded:
        example = unpack(self._shards.read(i))
        return example._replace(name=f"{self}, example {i} ({example.name})")

    def __str__(self) -> str:
        return f"{self.folder} {self.split}"


def open_records(path: Path) -> tuple[Records, Records]:
    """The training and validation images of a prepared set; ValueError where there is none."""
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = ("its preparation is unfinished: give the same --job=prepare command again"
                if (path / UNFINISHED).exists() else
                f"there is no {INDEX} in it: --job=prepare --images=PATH makes such a folder from "
                "images")
        raise ValueError(f"data.path = '{path}': {what}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"data.path = '{path}': {INDEX} cannot be read ({error})") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"data.path = '{path}': {INDEX} is not of format {FORMAT}; prepare the "
                         "set anew")
    for split, counts in index["shards"].items():
        for i in range(len(counts)):
            if not (path / shard_name(split, i, len(counts))).is_file():
                raise ValueError(f"data.path = '{path}': {shard_name(split, i, len(counts))} is "
                                 "missing; prepare the set anew")
    return tuple(Records(folder=path, split=split, counts=index["shards"][split],
                         classes=tuple(index["classes"]))
                 for split in ("train", "val"))
