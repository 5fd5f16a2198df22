"""The job `prepare`: turns images into the prepared set that a config reads, ArrayRecord shards
(data/formats/records.py).

    python -m vit_efficient.main --config=asvit:arrayrecord=OUT --job=prepare --images=PATH

A shard is there whole or not at all (`disk.py`), so that the same command after a kill goes on with
the shards that are missing. Read `prepare`, then from `_begin` down in the order of the work.
"""
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
import hashlib
import io
import json
import logging
import os
from pathlib import Path
import time

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
import jax
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from vit_efficient import disk
from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.formats.archives import TRAIN, open_archives
from vit_efficient.data.formats.encoded import Encoded, EncodedSource
from vit_efficient.data.formats.folders import open_folders
from vit_efficient.data.formats.records import FORMAT, INDEX, UNFINISHED, pack, shard_name
from vit_efficient.data.host import images as pixels
from vit_efficient.settings.values import Count

SHARD_IMAGES = 2048
JPEG_QUALITY = 95                                         # of images that are made smaller

log = logging.getLogger(__name__)


def prepare(config: ConfigDict, workdir: Path, *, images: str,
            short_side: Count | None = None) -> dict:
    """Writes the folder `data.path` of a config with `data.source` "arrayrecord".

    Args:
      images: a folder with train/<class>/ and val/<class>/ (or test/), or one with the official
        ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
      short_side: larger images are made smaller until their short side has so many pixels
        (bicubic, JPEG of quality 95); by default every file is kept byte for byte.
    Returns:
      What `dataset.json` holds. At most `data.max_bad_records` files of a split that hold no whole
      image are left out; one more, or shards of another preparation, raise ValueError.
    """
    if config.data.source != "arrayrecord":
        raise ValueError(f"data.source = {config.data.source}: --job=prepare writes the set that "
                         "the config reads; give one that reads it, as "
                         "--config=asvit:arrayrecord=FOLDER")
    if jax.process_count() > 1:
        raise ValueError("--job=prepare: runs in one process on one machine")
    source, folder = Path(images).expanduser(), Path(config.data.path).expanduser()
    find = open_archives if (source / TRAIN).is_file() else open_folders
    splits = dict(zip(("train", "val"), find(source, "--images")))
    begun = _plan(splits, source, short_side)
    if (folder / INDEX).exists() and _same(folder / INDEX, begun):
        print(f"{folder}: is prepared")
        return json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if not ((folder / UNFINISHED).exists() and _same(folder / UNFINISHED, begun)):
        _begin(folder, splits, begun, config.data.max_bad_records)
    shards = {split: _write_split(each, split, folder, short_side, config.data.max_bad_records)
              for split, each in splits.items()}
    index = begun | {"shards": shards}
    disk.write_json(folder / INDEX, index)
    (folder / UNFINISHED).unlink()
    print(f"{folder}: {sum(shards['train'])} training and {sum(shards['val'])} validation images "
          f"of {len(begun['classes'])} classes")
    return index


def smaller(data: bytes, name: str, short_side: int | None) -> bytes:
    """`data` itself, or a JPEG whose short side is `short_side` where it was longer.

    Decodes in any case, so that every record of a prepared set is a whole image: BadImage if not.
    """
    image = np.asarray(pixels.decode(data, name))
    height, width = image.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return data
    size = [round(side * short_side / min(height, width)) for side in (width, height)]
    file = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _plan(splits: dict[str, EncodedSource], source: Path, short_side: int | None) -> dict:
    """What the shards will hold; `names` stands for every file, its place and its class."""
    names = hashlib.sha256()
    for split in splits.values():
        for i in range(len(split)):
            names.update(os.fsencode(f"{split.short_name(i)}/{split.labels[i]}\n"))
        names.update(b"\n")
    return {"format": FORMAT, "classes": list(splits["train"].classes), "short_side": short_side,
            "shard_images": SHARD_IMAGES, "names": names.hexdigest(), "source": str(source)}


def _same(file: Path, begun: dict) -> bool:
    """True where `file` tells of the same preparation; ValueError where it tells of another one."""
    there = json.loads(file.read_text(encoding="utf-8"))
    if other := [key for key in begun if key != "source" and there.get(key) != begun[key]]:
        raise ValueError(f"data.path = '{file.parent}': holds a set of other {' and '.join(other)},"
                         " prepared or begun; give a new folder or delete this one")
    return True


def _begin(folder: Path, splits: dict[str, EncodedSource], begun: dict, allowed: int) -> None:
    """Checks the folder and the header of every image, before anything is written."""
    if folder.exists() and (not folder.is_dir() or any(
            path.suffix != disk.UNFINISHED for path in folder.iterdir())):
        raise ValueError(f"data.path = '{folder}': must be a new or an empty folder")
    for split in splits.values():
        bad = _bad_headers(split)
        if len(bad) > allowed:
            raise ValueError("\n  ".join([_too_many(len(bad), split, allowed), *bad[:20],
                                          *["..."][:len(bad) - 20]]))
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / UNFINISHED, begun)


def _too_many(count: int, source: EncodedSource, allowed: int) -> str:
    """What to say where more files hold no whole image than are allowed."""
    return (f"{source}: {count} files hold no whole image, data.max_bad_records = {allowed}; "
            "repair or remove them, or allow as many to be left out")


def _bad_headers(source: EncodedSource) -> list[str]:
    """What is wrong with each file whose header is that of no image; reads them in parallel."""
    def check(i: int) -> str | None:
        example = source.encoded(i)
        try:
            pixels.size(example.data, example.name)
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [error for error in pool.map(check, range(len(source))) if error]


def _write_split(source: EncodedSource, split: str, folder: Path, short_side: int | None,
                 allowed: int) -> list[int]:
    """Writes the shards that are missing or lack an image, which may have been repaired; returns
    the examples of each one."""
    places = [range(i, min(i + SHARD_IMAGES, len(source)))
              for i in range(0, len(source), SHARD_IMAGES)]
    paths = [folder / shard_name(split, i, len(places)) for i in range(len(places))]
    counts = {i: len(places[i]) for i, path in enumerate(paths)
              if path.exists() and _count(path) == len(places[i])}
    start, before = time.perf_counter(), len(counts)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        waiting = {pool.submit(_write_shard, source, places[i], path, short_side): i
                   for i, path in enumerate(paths) if i not in counts}
        for future in as_completed(waiting):
            counts[waiting[future]] = future.result()
            done = len(counts)
            bad = sum(len(places[i]) - counts[i] for i in counts)
            if bad > allowed:
                raise ValueError(_too_many(bad, source, allowed))
            rate = (done - before) * SHARD_IMAGES / (time.perf_counter() - start)
            log.info("%s: shard %d of %d, %d images/s", split, done, len(paths), rate)
    finally:
        pool.shutdown(cancel_futures=True)
    return [counts[i] for i in range(len(paths))]


def _write_shard(source: EncodedSource, places: range, path: Path, short_side: int | None) -> int:
    """Writes one shard, whole or not at all; the number of its examples."""
    count = 0
    with disk.whole(path) as neighbour:
        try:
            writer = ArrayRecordWriter(str(neighbour), "group_size:1,uncompressed")
            for record in _records(source, places, short_side):
                writer.write(record)
                count += 1
            writer.close()
        except RuntimeError as error:                     # all that ArrayRecord's writer raises
            raise ValueError(f"data.path = '{path.parent}': cannot be written "
                             f"({error})") from error
    return count


def _records(source: EncodedSource, places: range, short_side: int | None) -> Iterator[bytes]:
    """The packed examples of a shard; one that holds no whole image is logged and left out."""
    for i in places:
        data, name, label = source.encoded(i)
        try:
            data = smaller(data, name, short_side)
        except BadImage as error:
            log.warning("%s: left out", error)
            continue
        yield pack(Encoded(data, source.short_name(i), label))


def _count(path: Path) -> int:
    """The number of records in a shard."""
    reader = ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()
