"""Device transforms and what the group `augment` refuses."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.data import device
from vit_efficient.data.augment import IMAGENET_MEAN, IMAGENET_STD, make_augment

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 5, 5, 3), np.uint8)


def test_normalisation():
    expected = (IMAGES / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    augment = make_augment()
    batch = {"image": IMAGES, "label": np.arange(2)}
    for out in (augment.normalize(batch), jax.jit(augment.on_device)(batch, jax.random.key(0))):
        assert out["image"].dtype == jnp.float32 and out["label"].tolist() == [0, 1]
        np.testing.assert_allclose(out["image"], expected, atol=2e-6)
    half = make_augment(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).normalize({"image": IMAGES})
    np.testing.assert_allclose(half["image"], IMAGES / 127.5 - 1, atol=1e-6)


def test_device_transforms_run_in_the_configs_order_with_their_own_keys(monkeypatch):
    def tripled(batch, key):
        return batch | {"image": batch["image"] * 3.0, "drawn": jax.random.uniform(key)}

    def added(batch, key):
        return batch | {"image": batch["image"] + 1.0, "too": jax.random.uniform(key)}
    more = {"tripled": tripled, "added": added}
    monkeypatch.setattr(device, "TRANSFORMS", device.TRANSFORMS | more)
    unit = dict(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    batch, key = {"image": IMAGES}, jax.random.key(1)
    out = make_augment(device=("tripled", "normalize", "added"), **unit).on_device(batch, key)
    np.testing.assert_allclose(out["image"], IMAGES * 3.0 + 1, rtol=1e-5)
    assert out["drawn"] != out["too"]
    out = make_augment(device=("added", "tripled", "normalize"), **unit).on_device(batch, key)
    np.testing.assert_allclose(out["image"], (IMAGES + 1.0) * 3, rtol=1e-5)


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
    (dict(device=("normalise",)), "'normalise' is none of normalize"),
    (dict(device=()), "must hold 'normalize' once"),
    (dict(device=("normalize", "normalize")), "once")])
def test_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_augment(**wrong)
