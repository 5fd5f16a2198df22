"""Preparing: what is written, what is refused before, and that a kill costs only what was begun."""
import io
import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tests.data.formats import tars
from tests.data.image_files import BAD, NOISE, encode
from tests.runs import ROOT
from vit_efficient.data.formats import archives
from vit_efficient.data.sources import open_data
from vit_efficient.jobs import prepare as preparing
from vit_efficient.main import main
from vit_efficient.settings.store import load


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(preparing, "SHARD_IMAGES", 4)


@pytest.fixture
def images(tmp_path):
    """A folder with odd files; sides of 20 to 60."""
    rng = np.random.RandomState(0)
    for split, count in {"train": 7, "test": 3}.items():
        for name in "ab":
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.randint(0, 256, (20 + 5 * i, 60, 3), np.uint8))
                (folder / f"{i}.JPEG").write_bytes(encode(image, "PNG" if i == 2 else "JPEG"))
    return tmp_path / "images"


def prepare(images, out, allowed=0, **options):
    config = load(f"asvit:arrayrecord={out}", {"data.max_bad_records": allowed})
    return preparing.prepare(config, out, images=str(images), **options)


def everything(data):
    return [(np.asarray(image).tobytes(), image.shape, label)
            for split in (data.train, data.val) for image, label in map(split.__getitem__,
                                                                        range(len(split)))]


def state(folder: Path) -> dict:
    """What a folder holds: file -> (content, time of the last change)."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_a_prepared_folder_is_the_same_source(images, tmp_path):
    index = prepare(images, tmp_path / "out")
    assert index["shards"] == {"train": [4, 4, 4, 2], "val": [4, 2]}
    assert index["classes"] == ["a", "b"] and index["short_side"] is None
    given = open_data(source="imagefolder", path=str(images))
    found = open_data(source="arrayrecord", path=str(tmp_path / "out"))
    assert found.train.classes == given.train.classes
    for split in ("train", "val"):
        pairs = zip(*([getattr(data, split).encoded(i) for i in range(len(getattr(data, split)))]
                      for data in (given, found)), strict=True)
        assert all(a.data == b.data and a.label == b.label for a, b in pairs)    # byte for byte
    assert found.val.encoded(0).name.endswith("val, example 0 (a/0.JPEG)")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"dataset.json", *(f"train-0000{i}-of-00004.array_record" for i in range(4)),
                     *(f"val-0000{i}-of-00002.array_record" for i in range(2))}


def test_short_side(images, tmp_path):
    prepare(images, tmp_path / "out", short_side=30)
    given = open_data(source="imagefolder", path=str(images)).train
    found = open_data(source="arrayrecord", path=str(tmp_path / "out")).train
    for i in range(len(given)):
        before, after = given[i][0], found[i][0]
        if min(before.shape[:2]) <= 30:
            assert found.encoded(i).data == given.encoded(i).data
        else:
            assert after.shape == (30, round(60 * 30 / before.shape[0]), 3)
            before = Image.fromarray(np.asarray(before))
            expected = before.resize(after.shape[1::-1], Image.Resampling.BICUBIC)
            file = io.BytesIO(found.encoded(i).data)
            assert Image.open(file).format == "JPEG"
            assert np.abs(np.float32(expected) - after).mean() < 12  # noise, hard for JPEG


def test_the_official_tars(tmp_path, monkeypatch):
    """The command of the README on tiny tars of the real shape."""
    monkeypatch.setattr(archives, "validation_labels", lambda: tars.LABELS)
    image = encode(NOISE, "JPEG")
    tar = tars.tar
    (tmp_path / archives.TRAIN).write_bytes(tar({f"{name}.tar": tar({
        f"{name}_{i}.JPEG": image for i in range(3)}) for name in tars.CLASSES}))
    (tmp_path / archives.VAL).write_bytes(tar({
        f"ILSVRC2012_val_{i:08d}.JPEG": image for i in (3, 1, 2, 4)}))
    assert main([f"--config=asvit:arrayrecord={tmp_path}/out", "--job=prepare",
                 f"--images={tmp_path}"]) == 0
    data = open_data(source="arrayrecord", path=str(tmp_path / "out"))
    assert data.train.classes == tars.CLASSES and len(data.train) == 9
    assert [data.train[i][1] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    labels = {re.search(r"\d{8}", data.val.encoded(i).name)[0]: data.val[i][1] for i in range(4)}
    assert labels == {f"{i + 1:08d}": tars.CLASSES.index(name)
                      for i, name in enumerate(tars.LABELS)}


def test_files_without_an_image_are_found_before_anything_is_written(images, tmp_path):
    for kind in ("empty", "html"):
        (images / "train/a" / f"{kind}.jpg").write_bytes(BAD[kind][0])
    with pytest.raises(ValueError, match=r"train: 2 files hold no whole image.*allow as many.*\n"
                                         r".*a/empty.jpg: no readable.*\n.*a/html.jpg: no readab"):
        prepare(images, tmp_path / "out", allowed=1)
    assert not (tmp_path / "out").exists()
    assert sum(prepare(images, tmp_path / "out", allowed=2)["shards"]["train"]) == 14
    assert len(everything(open_data(source="arrayrecord", path=str(tmp_path / "out")))) == 20


def test_a_truncated_file_stops_and_may_be_repaired(images, tmp_path):
    file = images / "train/a/6.JPEG"
    whole = file.read_bytes()
    file.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match="train: 1 files hold no whole image, data.max_bad_rec"):
        prepare(images, tmp_path / "out")
    with pytest.raises(ValueError, match="its preparation is unfinished"):
        open_data(source="arrayrecord", path=str(tmp_path / "out"))
    file.write_bytes(whole)
    prepare(images, tmp_path / "out")
    assert everything(open_data(source="arrayrecord", path=str(tmp_path / "out"))) == everything(
        open_data(source="imagefolder", path=str(images)))


def test_a_budget_leaves_truncated_files_out(images, tmp_path):
    (images / "train/a/6.JPEG").write_bytes((images / "train/a/6.JPEG").read_bytes()[:-200])
    assert sum(prepare(images, tmp_path / "out", allowed=1)["shards"]["train"]) == 13
    train = open_data(source="arrayrecord", path=str(tmp_path / "out")).train
    assert not [i for i in range(13) if "a/6.JPEG" in train.encoded(i).name]


@pytest.mark.parametrize("change,message", [
    (lambda f: (f / "train/a/0.JPEG").rename(f / "train/a/x.JPEG"), "a set of other names"),
    (lambda f: (f / "train/a").rename(f / "train/0"), "no class of train|a set of other classes")])
def test_other_input_is_refused(images, tmp_path, change, message):
    prepare(images, tmp_path / "out")
    before = state(tmp_path / "out")
    prepare(images, tmp_path / "out")
    with pytest.raises(ValueError, match="a set of other short_side, prepared or begun"):
        prepare(images, tmp_path / "out", short_side=30)
    change(images)
    with pytest.raises(ValueError, match=message):
        prepare(images, tmp_path / "out")
    assert state(tmp_path / "out") == before


def test_refusals(images, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").touch()
    with pytest.raises(ValueError, match="full': must be a new or an empty folder"):
        prepare(images, tmp_path / "full")
    with pytest.raises(ValueError, match="--images = '.*absent': must be a folder"):
        prepare(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ValueError, match="data.source = digits: --job=prepare writes the set"):
        preparing.prepare(load("asvit:digits"), tmp_path, images=str(images))


def test_a_full_disk_is_told(images, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *arguments): ...
        def write(self, record):
            raise RuntimeError("write() failed: No space left on device")
    monkeypatch.setattr(preparing, "ArrayRecordWriter", Full)
    with pytest.raises(ValueError, match="data.path = '.*out': cannot be written .*No space left"):
        prepare(images, tmp_path / "out")


SLOWLY = """
import sys, time
from vit_efficient.jobs import prepare
from vit_efficient.main import main
smaller = prepare.smaller
prepare.SHARD_IMAGES = 4
prepare.smaller = lambda *arguments: (time.sleep(0.05), smaller(*arguments))[1]
sys.exit(main(sys.argv[1:]))
"""


def test_a_kill_costs_only_the_shards_that_were_begun(images, tmp_path):
    """SIGKILL when one shard is whole and another is not; then the same command again."""
    prepare(images, tmp_path / "alone")
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOWLY, f"--config=asvit:arrayrecord={out}", "--job=prepare",
               f"--images={images}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 120
            while not list(out.glob("train-*.array_record")) and time.monotonic() < end:
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    whole = {name: found for name, found in state(out).items() if name.endswith(".array_record")}
    assert 0 < len(whole) < 6 and (out / "unfinished.json").exists()
    assert not (out / "dataset.json").exists()
    prepare(images, out)
    after = state(out)
    assert all(after[name] == found for name, found in whole.items())           # not written again
    assert after.keys() == state(tmp_path / "alone").keys()
    alone, found = (open_data(source="arrayrecord", path=str(tmp_path / name))
                    for name in ("alone", "out"))
    assert everything(alone) == everything(found)
    assert json.loads((out / "dataset.json").read_text()) == json.loads(
        (tmp_path / "alone/dataset.json").read_text())
