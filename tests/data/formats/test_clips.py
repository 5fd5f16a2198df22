"""Clips against slow loops over their frames: which are seen, and that one draw moves all."""
import copy

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
from PIL import Image
import pytest

from vit_efficient.data import loader, order
from vit_efficient.data.augment import make_augment
from vit_efficient.data.batches import EvaluationBatches, Share, TrainBatches
from vit_efficient.data.device.erasing import erase
from vit_efficient.data.device.mixing import mix
from vit_efficient.data.frames import spaced, train_clip
from vit_efficient.data.sources import open_data
from vit_efficient.seams.phases import Length, constant

AUGMENT = make_augment(randaugment=9.0)
# Frames of each clip; the values of a frame say which clip and which frame it is.
LENGTHS = {"train": {"a/x": 11, "a/y": 2, "b/z": 12, "b/w": 3}, "val": {"b/v": 1, "b/u": 10}}


def picture(clip: int, frame: int) -> np.ndarray:
    """Not alike when mirrored or cropped elsewhere."""
    slope = np.arange(12 * 16).reshape(12, 16) % 97
    return np.stack([slope, np.full_like(slope, 20 * frame), np.full_like(slope, 40 * clip)],
                    -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for split, clips in LENGTHS.items():
        for number, (name, length) in enumerate(clips.items()):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(length):
                Image.fromarray(picture(number, i)).save(tmp_path / split / name / f"f{i}.png")
    (tmp_path / "train/a/x/notes.txt").write_text("no frame")
    (tmp_path / "train/a/x/.f0.png").write_bytes(b"hidden")
    (tmp_path / "train/a/readme.txt").write_text("no clip")
    return tmp_path


def opened(folder, **options):
    return open_data(source="clips", path=str(folder), image_size=10, frames=4, **options)


def batches(source, share=Share()):
    return TrainBatches(source, AUGMENT.train, constant(Length(4, 4, 3), None), 4, 10, share, 3, 0)


@given(st.integers(1, 500), st.integers(1, 64))
def test_the_frames_of_an_evaluation_are_the_middles_of_equal_segments(count, frames):
    found = spaced(count, frames).tolist()
    assert found == [(2 * i + 1) * count // (2 * frames) for i in range(frames)]
    assert set(np.diff(found)) <= {count // frames, -(-count // frames)}
    if frames >= count:
        assert set(found) == set(range(count))
    assert spaced(count, count).tolist() == list(range(count))


@given(st.integers(1, 500), st.integers(1, 64), st.data())
def test_a_random_frame_lies_in_its_segment(count, frames, data):
    shift = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=frames, max_size=frames))
    found = spaced(count, frames, np.array(shift)).tolist()
    assert found == sorted(found) and found[-1] < count
    for i, place in enumerate(found):
        assert place * frames > i * count - frames          # the floor of a place from i c / F on
        assert place * frames <= (i + 1) * count
    assert spaced(count, frames, np.zeros(frames)).tolist() == [
        i * count // frames for i in range(frames)]


def test_clips_stand_in_their_folders_frames_in_the_order_of_their_numbers(folder):
    data = opened(folder)
    assert data.train.classes == ("a", "b") and data.train.frames == 4 and len(data.val) == 2
    every = [data.train[i] for i in range(4)]
    assert [label for _, label in every] == [0, 0, 1, 1]
    assert [clip.folder.name for clip, _ in every] == ["x", "y", "w", "z"]
    assert [len(clip) for clip, _ in every] == [11, 2, 3, 12]
    assert [int(every[3][0][i][0, 0, 1]) for i in range(12)] == [20 * i for i in range(12)]


def test_an_evaluation_sees_the_middle_frames(folder):
    source = opened(folder).val
    batch = EvaluationBatches(source, AUGMENT.evaluate, 10, 4, Share())[0]
    assert batch["image"].shape == (4, 4, 10, 10, 3)
    assert batch["weight"].tolist() == [1, 1, 0, 0] and not batch["image"][2:].any()
    assert batch["label"][:2].tolist() == [1, 1]
    for row, (clip, places) in enumerate([(1, (1, 3, 6, 8)), (0, (0, 0, 0, 0))]):
        for i, place in enumerate(places):
            np.testing.assert_array_equal(batch["image"][row, i],
                                          AUGMENT.evaluate(picture(clip, place), 10))


def test_a_training_clip_is_a_loop_over_frames_under_the_same_draws(folder):
    source = opened(folder).train
    clips = list(LENGTHS["train"])                  # in the order in which they were numbered
    seen = set()
    for step, batch in enumerate(batches(source)[i] for i in range(3)):
        assert batch["image"].shape == (4, 4, 10, 10, 3)
        examples = order.shuffled(np.arange(4), 4, 3, step).tolist()
        for row, example in enumerate(examples):
            name = ("a/x", "a/y", "b/w", "b/z")[example]
            rng = order.generator(3, step, example, 0)
            length = LENGTHS["train"][name]
            places = [min(int((i + rng.random()) * length / 4), length - 1) for i in range(4)]
            for i, place in enumerate(places):
                expected = AUGMENT.train(picture(clips.index(name), place), 10, copy.deepcopy(rng))
                np.testing.assert_array_equal(batch["image"][row, i], expected)
            seen.add((name, tuple(places)))
    assert len(seen) > 8                            # other frames in another epoch


def test_processes_together_hold_the_batch_of_one_and_workers_change_nothing(folder):
    data = opened(folder)
    whole = batches(data.train)[1]
    parts = [batches(data.train, Share((p,), 2))[1] for p in range(2)]
    assert whole.pop("bad") == {}
    for name, expected in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("data",))
    with loader.train_batches(data, AUGMENT.train, constant(Length(4, 4, 3), None), 4,
                              NamedSharding(mesh, P("data")), 3, 0, workers=1,
                              threads=2) as loaded:
        found = list(loaded)
    assert len(found) == 3
    np.testing.assert_array_equal(found[1]["image"], whole["image"])


def test_a_clip_with_a_damaged_frame_is_a_bad_record(folder):
    for i in range(3):
        (folder / f"train/b/w/f{i}.png").write_bytes(b"no image")
    batch = batches(opened(folder).train)[0]
    assert list(batch["bad"]) == [2] and "train/b/w/f0.png: no readable image" in batch["bad"][2]
    examples = order.shuffled(np.arange(4), 4, 3, 0).tolist()
    expected = train_clip(opened(folder).train[3][0], 10, order.generator(3, 0, 2, 0), frames=4,
                          transform=AUGMENT.train)           # the next clip stands in for it
    np.testing.assert_array_equal(batch["image"][examples.index(2)], expected)


def test_mixing_and_erasing_treat_the_frames_of_a_clip_alike():
    rng = np.random.default_rng(0)
    still = jnp.asarray(rng.normal(size=(6, 9, 8, 3)), jnp.float32)
    label = jax.nn.one_hot(rng.integers(0, 5, 6), 5)
    images = {"image": still, "label": label}
    clips = {"image": jnp.repeat(still[:, None], 3, 1), "label": label}
    key = jax.random.key(4)
    for transform in (
            lambda batch: mix(batch, key, mixup=0.0, cutmix=1.0, probability=1.0,
                              switch_probability=0.5),
            lambda batch: erase(batch, key, probability=0.7, mode="const"),
            lambda batch: erase(batch, key, probability=0.7, mode="rand")):
        expected, found = transform(images), transform(clips)
        assert (expected["image"] != still).any()
        for i in range(3):
            np.testing.assert_array_equal(found["image"][:, i], expected["image"])
        np.testing.assert_array_equal(found["label"], expected["label"])
    noisy = erase(clips, key, probability=0.7, mode="pixel")["image"]
    changed = np.any(noisy != clips["image"], -1)
    np.testing.assert_array_equal(changed[:, 0], changed[:, 1])
    assert (noisy[:, 0] != noisy[:, 1]).any()


@pytest.mark.parametrize("damage, options, message", [
    (lambda f: (f / "train/b/none").mkdir(), {}, "data.path = .*no frames .* in .*train/b/none$"),
    (lambda f: [(f / "val/b" / n).mkdir() for n in "cde"], {}, "val/b/c and 2 other clips"),
    (lambda f: (f / "train/c").mkdir(), {}, r"no clips \(folders of frames\) in .*train/c"),
    (lambda f: None, dict(frames=None), "data.frames = None: data.source = clips needs it: 8"),
    (lambda f: None, dict(path=""), "data.path = '': data.source = clips needs it"),
    (lambda f: None, dict(source="imagefolder"), "data.frames = 4: .*imagefolder holds images")])
def test_what_a_folder_of_clips_must_hold(folder, damage, options, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        open_data(**dict(source="clips", path=str(folder), frames=4) | options)
