"""The tars of ImageNet-1k: every image at its place, and what is wrong with incomplete ones."""
from collections import Counter

import pytest

from tests.data.formats.tars import CLASSES, LABELS, tar
from vit_efficient.data.formats import archives


def train_tar(classes=CLASSES) -> bytes:
    """Images in another order than that of their names; their content is their name."""
    return tar({f"{name}.tar": tar({f"{name}_{i}.JPEG": f"{name}_{i}".encode() for i in (9, 10, 2)})
                for name in reversed(classes)})


def val_tar(count=len(LABELS)) -> bytes:
    return tar({f"ILSVRC2012_val_{i:08d}.JPEG": b"val %d" % i for i in range(count, 0, -1)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "validation_labels", lambda: LABELS)
    (tmp_path / archives.TRAIN).write_bytes(train_tar())
    (tmp_path / archives.VAL).write_bytes(val_tar())
    return tmp_path


def test_images_in_the_order_of_classes_and_names(folder):
    train, val = archives.open_archives(folder, "--images")
    assert train.classes == val.classes == CLASSES
    found = [train.encoded(i) for i in range(len(train))]
    assert [(e.data.decode(), e.label) for e in found] == [
        (f"{name}_{i}", label) for label, name in enumerate(CLASSES) for i in (10, 2, 9)]
    assert found[0].name == f"{folder / archives.TRAIN}: n01440764/n01440764_10.JPEG"
    assert train.short_name(0) == "n01440764/n01440764_10.JPEG"


def test_validation_labels_go_by_the_numbers_of_the_files(folder):
    val = archives.open_archives(folder, "--images")[1]
    found = {val.encoded(i).data: val.classes[val.encoded(i).label] for i in range(len(val))}
    assert found == {b"val %d" % (i + 1): label for i, label in enumerate(LABELS)}


def test_the_official_labels():
    """50 images of each of 1,000 classes; the first three are those of the development kit."""
    labels = archives.validation_labels()
    assert labels[:3] == ["n01751748", "n09193705", "n02105855"]
    assert len(labels) == 50_000 and set(Counter(labels).values()) == {50}


@pytest.mark.parametrize("name,content,message", [
    (archives.TRAIN, None, f"there is no {archives.TRAIN}"),
    (archives.VAL, None, f"there is no {archives.VAL}"),
    (archives.TRAIN, train_tar(CLASSES[:2]), "must hold one tar for each of the 3 classes; 1 are "
                                             "missing or foreign, as n01484850.tar"),
    (archives.TRAIN, train_tar((*CLASSES, "n99")), "as n99.tar"),
    (archives.TRAIN, train_tar()[:15_000], "no whole tar at byte 0"),
    (archives.TRAIN, tar({f"{name}.tar": b"<html>" for name in CLASSES}), "no whole tar at byte 5"),
    (archives.VAL, val_tar().replace(b"ILSVRC2012_val_00000002", b"ILSVRC2012_val_00000009"),
     "no whole tar at byte 0 .damaged at byte 2048"),
    (archives.TRAIN, tar({f"{name}.tar": tar({}) for name in CLASSES}), "n01440764.tar holds no"),
    (archives.VAL, val_tar(3), "ILSVRC2012_val_00000001.JPEG to 00000004.JPEG, holds 3 files"),
    (archives.VAL, b"<html>", "no whole tar")])
def test_what_the_tars_must_hold(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        archives.open_archives(folder, "--images")
