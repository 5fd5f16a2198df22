"""What the group `augment` makes of its keys, and what it refuses."""
from functools import partial
import pickle

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from tests.data.photos import photos
from vit_efficient.data.augment import IMAGENET_MEAN, IMAGENET_STD, make_augment
from vit_efficient.data.device.erasing import erase
from vit_efficient.data.device.mixing import mix
from vit_efficient.data.device.normalize import normalize
from vit_efficient.data.host.color import color_jitter, three_augment
from vit_efficient.data.host.randaugment import rand_augment

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 5, 5, 3), np.uint8)


def test_normalisation():
    expected = (IMAGES / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    augment = make_augment()
    batch = {"image": IMAGES, "label": np.arange(2)}
    in_a_step = jax.jit(partial(augment.on_device, num_classes=4))(batch, jax.random.key(0))
    for out in (augment.normalize(batch), in_a_step):
        assert out["image"].dtype == jnp.float32 and out["label"].tolist() == [0, 1]
        np.testing.assert_allclose(out["image"], expected, atol=2e-6)
    half = make_augment(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).normalize({"image": IMAGES})
    np.testing.assert_allclose(half["image"], IMAGES / 127.5 - 1, atol=1e-6)


def test_device_transforms_run_in_the_configs_order_with_their_own_keys():
    """The key of a transform is the step's, folded with its place among those that are on."""
    on = dict(erase=0.7, mixup=0.8, cutmix=1.0)
    key, classes = jax.random.key(3), 10
    images = np.random.RandomState(1).randint(0, 256, (6, 9, 9, 3), np.uint8)
    steps = {"normalize": partial(normalize, mean=IMAGENET_MEAN, std=IMAGENET_STD),
             "erase": partial(erase, probability=0.7, mode="pixel"),
             "mix": partial(mix, mixup=0.8, cutmix=1.0, probability=1.0, switch_probability=0.5)}
    results = []
    for order in [("normalize", "erase", "mix"), ("mix", "normalize", "erase"),
                  ("normalize", "mix", "erase")]:
        batch = {"image": jnp.asarray(images), "label": np.arange(6)}
        made = make_augment(device=order, **on).on_device(batch, key, classes)
        batch |= {"label": jnp.eye(6, 10)}
        for i, name in enumerate(order):
            batch = steps[name](batch, jax.random.fold_in(key, i))
        np.testing.assert_allclose(made["image"], batch["image"], atol=1e-6)
        np.testing.assert_allclose(made["label"], batch["label"], atol=1e-6)
        assert made["label"].shape == (6, 10) and made["image"].dtype == jnp.float32
        results.append(made["image"])
    assert all((abs(a - b) > 0.1).any() for a, b in zip(results, results[1:]))


def test_what_is_off_is_passed_over():
    batch, key = {"image": IMAGES, "label": np.arange(2)}, jax.random.key(0)
    out = make_augment().on_device(batch, key, 4)
    assert out["label"].tolist() == [0, 1]                  # not mixed: stays an integer
    erased = make_augment(erase=1.0, erase_mode="const").on_device(batch, key, 4)["image"]
    expected = normalize(batch, None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = erase(expected, jax.random.fold_in(key, 1), probability=1.0, mode="const")
    np.testing.assert_array_equal(erased, expected["image"])
    soft = make_augment(mixup=1.0).on_device(batch | {"label": jnp.eye(2, 4)}, key, 4)
    assert soft["label"].shape == (2, 4)                    # labels that are distributions already


def test_changes_of_the_host():
    """Each is what its own function makes of the square, with the random numbers after those."""
    image = np.asarray(photos()[0])
    for kwargs, changes in [
            (dict(randaugment=4.0),
             [partial(rand_augment, magnitude=4.0, interpolation="bicubic")]),
            (dict(randaugment=0.0, interpolation="random"),
             [partial(rand_augment, magnitude=0.0, interpolation="random")]),
            (dict(color_jitter=0.4), [partial(color_jitter, strength=0.4)]),
            (dict(three_augment=True, color_jitter=0.3, crop="src"),
             [three_augment, partial(color_jitter, strength=0.3)])]:
        augment = make_augment(**kwargs)
        assert pickle.loads(pickle.dumps(augment)).repeats == 1     # worker processes get it so
        differs = 0
        for seed in range(12):
            rng = np.random.default_rng(seed)
            square = make_augment(**{name: kwargs[name] for name in kwargs
                                     if name in ("crop", "interpolation")}).train(image, 48, rng)
            expected = Image.fromarray(square)
            for change in changes:
                expected = change(expected, rng)
            out = augment.train(image, 48, np.random.default_rng(seed))
            np.testing.assert_array_equal(out, np.asarray(expected))
            assert out.dtype == np.uint8 and out.shape == (48, 48, 3)
            differs += (out != square).any()
        assert differs > 6


def test_host_transforms_follow_the_group():
    image, rng = IMAGES[0], np.random.default_rng(0)
    mirrored = make_augment(crop="resize", flip=1.0).train(image, 5, rng)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    np.testing.assert_array_equal(make_augment(eval_crop=1.0).evaluate(image, 5), image)
    a, b = (make_augment(interpolation=i).evaluate(image, 12) for i in ("random", "bicubic"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("wrong,message", [
    (dict(scale=(0.5, 0.1)), 
     r"augment.scale = \(0.5, 0.1\): least and largest, above 0 and at most 1"),
    (dict(scale=(0.0, 1.0)), "augment.scale"), (dict(scale=(0.1, 1.5)), "augment.scale"),
    (dict(scale=(float("nan"), 1.0)), "augment.scale"),
    (dict(ratio=(-1.0, 1.0)), "augment.ratio"), (dict(ratio=(2.0, 1.0)), "augment.ratio"),
    (dict(std=(0.2, 0.0, 0.2)), "augment.std"),
    (dict(padding=4), "augment.padding = 4: only augment.crop = padded reads it"),
    (dict(randaugment=9.0, three_augment=True), "randaugment = 9: .* augment.three_augment"),
    (dict(randaugment=0.0, color_jitter=0.4), "randaugment = 0: .* augment.color_jitter = 0.4"),
    (dict(erase=0.25, device=("normalize", "mix")), "must hold 'erase' once"),
    (dict(cutmix=1.0, device=("normalize",)), "must hold 'mix' once"),
    (dict(device=("normalize", "mix", "mix")), "must hold 'mix' once"),
    (dict(device=("erase", "normalize")), "'erase' comes after 'normalize'"),
    (dict(device=("normalise",)), "'normalise' is none of normalize, erase, mix"),
    (dict(device=()), "must hold 'normalize' once"),
    (dict(device=("normalize", "normalize")), "once")])
def test_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_augment(**wrong)
