"""Prepared sets: records there and back, whole folders, damaged and missing shards."""
import json
import pickle

from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, strategies as st
import numpy as np
from PIL import Image
import pytest

from tests.data.image_files import encode
from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.formats import records, retry
from vit_efficient.data.formats.encoded import Encoded
from vit_efficient.data.sources import open_data

COUNTS = {"train": [3, 2], "val": [2]}


@given(st.binary(max_size=50), st.text(st.characters(codec="utf-8"), max_size=20),
       st.integers(0, 2 ** 32 - 1))
def test_a_record_holds_its_example(data, name, label):
    assert records.unpack(records.pack(Encoded(data, name, label))) == (data, name, label)


def test_a_name_that_is_no_unicode_survives():
    name = b"class/\xff.jpg".decode("utf-8", "surrogateescape")
    assert records.unpack(records.pack(Encoded(b"", name, 0))).name == name


def test_the_layout_is_the_documented_one():
    assert records.pack(Encoded(b"JPEG", "a/é", 258)) == b"\x02\x01\0\0\x04\0a/\xc3\xa9JPEG"


@pytest.fixture
def folder(tmp_path):
    """Five training and two validation images; the red of an image is 10 times its number."""
    number = 0
    for split, counts in COUNTS.items():
        for shard, count in enumerate(counts):
            file = tmp_path / records.shard_name(split, shard, len(counts))
            writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
            for _ in range(count):
                image = encode(Image.new("RGB", (4, 3), (10 * number, 0, 0)), "PNG")
                writer.write(records.pack(Encoded(image, f"c/{number}.png", number % 2)))
                number += 1
            writer.close()
    index = {"format": 1, "classes": ["b", "c"], "short_side": None, "shards": COUNTS}
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    return tmp_path


def opened(folder):
    return open_data(source="arrayrecord", path=str(folder), max_bad_records=1)


def test_examples_run_through_the_shards(folder):
    data = opened(folder)
    assert (len(data.train), len(data.val), data.train.classes) == (5, 2, ("b", "c"))
    every = [split[i] for split in (data.train, data.val) for i in range(len(split))]
    assert [(image.shape, int(image[0, 0, 0]), label) for image, label in every] == [
        ((3, 4, 3), 10 * number, number % 2) for number in range(7)]
    assert str(data.train) == f"{folder} train" and data.train.max_bad_records == 1
    assert data.train.encoded(4).name == f"{folder} train, example 4 (c/4.png)"
    copied = pickle.loads(pickle.dumps(data.train))                     # as a worker process does
    np.testing.assert_array_equal(copied[3][0], data.train[3][0])


def test_damage_is_a_bad_record_and_its_neighbours_are_not(folder):
    file = folder / "train-00000-of-00002.array_record"
    content = bytearray(file.read_bytes())
    content[content.index(b"c/1.png") + 20] ^= 1
    file.write_bytes(content)
    train = opened(folder).train
    with pytest.raises(BadImage, match="train, example 1: damaged"):
        train[1]
    assert [train[i][1] for i in (0, 2, 3, 4)] == [0, 0, 1, 0]


def test_a_shard_that_comes_back_is_read_again(folder, monkeypatch):
    file = folder / "train-00001-of-00002.array_record"
    train = opened(folder).train
    file.rename(folder / "away")
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: (folder / "away").rename(file))
    assert train[3][1] == 1


def test_a_shard_that_stays_away_is_named(folder, monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    train = opened(folder).train
    (folder / "train-00001-of-00002.array_record").unlink()
    with pytest.raises(OSError, match="train, example 3: cannot be read .*train-00001-of-00002"):
        train[3]


@pytest.mark.parametrize("damage,message", [
    (lambda f: (f / "val-00000-of-00001.array_record").unlink(), "val-00000-of-00001.array_record "
                                                                 "is missing"),
    (lambda f: (f / "dataset.json").unlink(), "there is no dataset.json in it: --job=prepare"),
    (lambda f: (f / "dataset.json").rename(f / "unfinished.json"), "preparation is unfinished"),
    (lambda f: (f / "dataset.json").write_text("{"), "dataset.json cannot be read"),
    (lambda f: (f / "dataset.json").write_text("[]"), "dataset.json is not of format 1"),
    (lambda f: (f / "dataset.json").write_text('{"format": 2}'), "is not of format 1")])
def test_what_a_prepared_set_must_hold(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=f"^data.path = '{folder}': .*{message}"):
        opened(folder)
