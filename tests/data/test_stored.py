"""A stored teacher: rows by example whoever loads them, and what does not fit refused."""
import json
import pickle

import jax
import numpy as np
import pytest

from tests.data.noise import AUGMENT, PHASES, SOURCE
from vit_efficient.data import loader, order
from vit_efficient.data.augment import make_augment
from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.batches import Share, TrainBatches
from vit_efficient.data.sources import Arrays, Data
from vit_efficient.data.stored import Stored, describe, sampled

AUGMENTED = {"crop": "random_resized", "flip": 0.5, "randaugment": 9.0, "eval_crop": 0.875,
             "mixup": 0.0, "cutmix": 0.0}
CENTRE = AUGMENTED | {"crop": "center", "flip": 0.0, "randaugment": None}


def write(folder, rows, kind="class", source=SOURCE, **changes):
    """The two files, as the docstring's program writes them."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "features.npy", rows)
    seen = [k * len(source) // 64 for k in range(64)]
    about = {"format": 1, "kind": kind, "crop": 0.875,
             "labels": [int(source[i][1]) for i in seen],
             "means": [float(np.mean(source[i][0])) for i in seen]} | changes
    (folder / "features.json").write_text(json.dumps(about))
    return folder


def numbered(*shape):
    """Rows of which each number tells its example."""
    return np.broadcast_to(np.arange(41.0).reshape(41, *[1] * len(shape)),
                           (41, *shape)).astype(np.float16)


@pytest.fixture
def stored(tmp_path):
    return Stored(write(tmp_path / "x", numbered(3)))


def batches(stored, share=Share(), source=SOURCE):
    return TrainBatches(source, AUGMENT.train, PHASES, 8, 12, share, 3, 0, stored)


def test_a_row_goes_with_its_image_on_any_process(stored):
    for step in (0, 5, 14):
        epoch, inside = divmod(step, 5)
        examples = order.shuffled(np.arange(8) + inside * 8, 41, 3, epoch)
        whole = batches(stored)[step]["teacher"]
        assert whole.dtype == np.float16 and whole.shape == (8, 3)
        np.testing.assert_array_equal(whole[:, 0], examples)
        parts = [batches(stored, Share((p,), 2))[step]["teacher"] for p in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_worker_is_sent_the_path_and_not_the_rows(stored):
    stored[0]
    assert len(pickle.dumps(stored)) < 5000 and pickle.loads(pickle.dumps(stored))[7][0] == 7


def test_the_row_of_a_bad_record_is_that_of_what_stands_in(stored):
    class Damaged(Arrays):
        max_bad_records = 1

        def __getitem__(self, i):
            if i == 4:
                raise BadImage("damaged")
            return super().__getitem__(i)
    source = Damaged(SOURCE.images, SOURCE.labels, SOURCE.classes)
    rows = [batches(stored, source=source)[i]["teacher"][:, 0] for i in range(5)]
    assert 4 not in np.concatenate(rows) and sorted(np.concatenate(rows)).count(5) == 2
    stored.check_source(source)


def test_other_images_and_another_order_are_noticed(stored):
    assert sampled(128) == list(range(0, 128, 2)) and describe(SOURCE, [3]) == (
        [SOURCE.labels[3]], [SOURCE.images[3].mean()])
    stored.check_source(SOURCE)
    changed = SOURCE.images.copy()
    changed[20] = 255 - changed[20] // 2
    for images, labels in ((changed, SOURCE.labels), (SOURCE.images[::-1], SOURCE.labels[::-1])):
        with pytest.raises(ValueError, match="made from other images or another order than noise"):
            stored.check_source(Arrays(images, labels, SOURCE.classes, "noise"))
    with pytest.raises(ValueError, match="has 41 rows, the training set 40 examples"):
        stored.check_source(Arrays(SOURCE.images[:40], SOURCE.labels[:40], SOURCE.classes))


@pytest.mark.parametrize("rows, changes, message", [
    (numbered(3).astype(np.float32), {}, r"holds float32\[41, 3\], class is float16 with 2 axes"),
    (numbered(5, 3), {}, "class is float16 with 2 axes"),
    (numbered(3), {"kind": "patches"}, "a kind of class, tokens, logits"),
    (numbered(3), {"format": 2}, "must say format 1"),
    (numbered(3), {"labels": [1]}, "labels and means of 64 examples")])
def test_files_of_another_form_are_refused(tmp_path, rows, changes, message):
    with pytest.raises(ValueError, match=message):
        Stored(write(tmp_path / "x", rows, **changes))


def test_a_missing_folder_and_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="teacher.stored = .*x': cannot be read .*--job=features"):
        Stored(tmp_path / "x")
    rows = numbered(3).copy()
    rows[0, 1] = np.inf
    with pytest.raises(ValueError, match="row 0 holds numbers that are not finite"):
        Stored(write(tmp_path / "x", rows)).check_source(SOURCE)


def test_what_the_teacher_has_not_seen_is_refused(tmp_path, stored):
    tokens = Stored(write(tmp_path / "tokens", numbered(5, 3), "tokens"))
    stored.check_augment(AUGMENTED)
    tokens.check_augment(CENTRE)
    for each, group, message in (
            (stored, AUGMENTED | {"mixup": 0.8}, "augment.mixup = 0, not 0.8"),
            (tokens, CENTRE | {"cutmix": 1.0}, "augment.cutmix = 0, not 1"),
            (tokens, AUGMENTED, "set augment.crop = center, not random_resized"),
            (tokens, CENTRE | {"flip": 0.5}, "set augment.flip = 0.0, not 0.5"),
            (tokens, CENTRE | {"randaugment": 1.0}, "set augment.randaugment = None, not 1"),
            (tokens, CENTRE | {"eval_crop": 1.0}, "set augment.eval_crop = 0.875, not 1.0")):
        with pytest.raises(ValueError, match=message):
            each.check_augment(group)


def test_the_centre_crop_of_training_is_the_evaluated_one():
    augment = make_augment(crop="center", flip=0.0, eval_crop=0.75)
    image = np.random.RandomState(1).randint(0, 256, (20, 30, 3), np.uint8)
    found = augment.train(image, 12, order.generator(0, 0, 0, 0))
    np.testing.assert_array_equal(found, augment.evaluate(image, 12))
    mirrored = make_augment(crop="center", flip=1.0, eval_crop=0.75)
    np.testing.assert_array_equal(mirrored.train(image, 12, order.generator(0, 0, 0, 0)),
                                  found[:, ::-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_do_not_depend_on_workers(stored, workers):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with loader.train_batches(Data(SOURCE, SOURCE, 5, 12), AUGMENT.train, PHASES, 8, place, 3, 0,
                              stored, workers=workers, threads=1) as loaded:
        found = [np.asarray(batch["teacher"]) for batch in loaded]
    expected = batches(stored)
    assert len(found) == len(expected) == 15
    for step, rows in enumerate(found):
        np.testing.assert_array_equal(rows, expected[step]["teacher"])
