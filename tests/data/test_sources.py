"""The sources of a config: the digits, and which keys belong to which source."""
import numpy as np
import pytest
from sklearn.datasets import load_digits

from vit_efficient.data.sources import named_images, open_data


def test_digits_are_scikit_learns():
    data, digits = open_data(source="digits", image_size=32), load_digits()
    assert (len(data.train), len(data.val)) == (1438, 359)
    assert (data.num_classes, data.image_size) == (10, 32)
    every = [source[i] for source in (data.train, data.val) for i in range(len(source))]
    found = sorted((*(image[..., 0] * (16 / 255)).round().astype(int).ravel(), label)
                   for image, label in every)
    assert found == sorted((*image.astype(int).ravel(), label)
                           for image, label in zip(digits.images, digits.target))
    image, label = every[0]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and type(label) is int
    assert all((image == image[..., :1]).all() for image, _ in every)
    assert max(image.max() for image, _ in every) == 255


def test_digits_validation_is_a_fifth_of_each_class_and_always_the_same():
    data = open_data(source="digits")
    for label in range(10):
        val, train = ((source.labels == label).sum() for source in (data.val, data.train))
        assert val == round((val + train) / 5)
    first = [int(np.int64(data.val[i][0]).sum() * 3 + data.val[i][1]) for i in range(5)]
    assert first == [46047, 49918, 47363, 38025, 48493]


@pytest.mark.parametrize("keys,message", [
    (dict(source="imagefolder"), "data.path = '': data.source = imagefolder needs it"),
    (dict(source="arrayrecord"), "data.path = '': data.source = arrayrecord needs it"),
    (dict(source="tfds"), "data.name = '': data.source = tfds needs it: imagenet2012"),
    (dict(source="digits", path="/tmp"), "data.path = '/tmp': data.source = digits does not read"),
    (dict(source="digits", name="x"), "data.name = 'x': data.source = digits does not read it"),
    (dict(source="imagefolder", path="/tmp", name="x"), "data.name = 'x': .* imagefolder does not"),
    (dict(source="imagefolder", path="/absent"), "data.path = '/absent': must be a folder")])
def test_keys_belong_to_sources(keys, message):
    with pytest.raises(ValueError, match=message):
        open_data(**keys)


def test_words_of_a_recipe():
    usual = {"source": "digits"}
    assert named_images({"tfds": "cifar10"}, usual) == {"source": "tfds", "name": "cifar10"}
    assert named_images({"arrayrecord": "/x"}, usual) == {"source": "arrayrecord", "path": "/x"}
    assert named_images({"clips": "/x"}, usual) == {"source": "clips", "path": "/x", "frames": 8}
    assert named_images({}, usual) == usual is not named_images({}, usual)
    with pytest.raises(ValueError, match="tfds= and imagefolder=: one source of images"):
        named_images({"tfds": "cifar10", "imagefolder": "/x"}, usual)
