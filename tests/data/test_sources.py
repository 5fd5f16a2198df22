"""Sources against what lies in their files."""
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

from vit_efficient.data.sources import open_data


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


@pytest.fixture
def folder(tmp_path):
    """Two classes; the name of a file says its colour."""
    splits = {"train": ["b/2.jpg", "b/10.JPEG", "a/x.png", "a/y.png"], "val": ["b/0.png"]}
    for split, names in splits.items():
        for i, name in enumerate(names):
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6 + i, 4), (40 * i, 20, 0)).save(path, format="PNG")
    return tmp_path


def test_folder_order(folder):
    (folder / "train/a/notes.txt").write_text("no image")
    (folder / "train/a/._x.png").write_bytes(b"left by a file manager")
    (folder / "train/readme.txt").write_text("no class")
    (folder / "train/.cache").mkdir()
    data = open_data(source="imagefolder", path=str(folder), image_size=64)
    assert data.train.classes == ("a", "b") and data.num_classes == 2 and data.image_size == 64
    every = [data.train[i] for i in range(4)]
    found = [(image.shape, int(image[0, 0, 0]), label) for image, label in every]
    assert found == [((4, 8, 3), 80, 0), ((4, 9, 3), 120, 0), ((4, 7, 3), 40, 1), ((4, 6, 3), 0, 1)]
    assert len(data.val) == 1 and data.val[0][1] == 1  # numbered by the training classes
    assert str(folder) in str(data.train)


def test_test_folder_serves_for_val(folder):
    (folder / "val").rename(folder / "test")
    assert len(open_data(source="imagefolder", path=str(folder)).val) == 1


def test_modes_become_rgb(folder):
    levels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    images = {
        "L": Image.fromarray(levels),
        "1": Image.fromarray(levels).convert("1"),
        "LA": Image.merge("LA", [Image.fromarray(levels), Image.new("L", (4, 4), 7)]),
        "RGBA": Image.merge("RGBA", [*[Image.fromarray(levels)] * 3, Image.new("L", (4, 4), 7)]),
        "P": Image.fromarray(levels).convert("P"),
        "CMYK": Image.merge("CMYK", [Image.fromarray(255 - levels)] * 3 + [Image.new("L", (4, 4))]),
    }
    for mode, image in images.items():
        assert image.mode == mode
        image.save(folder / "train/a" / f"mode {mode}.tif")
    data = open_data(source="imagefolder", path=str(folder))
    names = [name.decode() for name in data.train.names]
    for mode in images:
        found = data.train[names.index(f"mode {mode}.tif")][0]
        expected = np.where(levels > 127, 255, 0) if mode == "1" else levels
        if mode == "1":
            assert set(np.unique(found)) <= {0, 255}  # dithered: compare the levels only
        else:
            np.testing.assert_array_equal(found, np.broadcast_to(expected[..., None], (4, 4, 3)))


def test_orientation_is_ignored(folder):
    exif = Image.Exif()
    exif[0x0112] = 6                                                 # "turn by 90 degrees"
    Image.new("RGB", (10, 4)).save(folder / "train/a/turned.jpg", exif=exif)
    data = open_data(source="imagefolder", path=str(folder))
    assert data.train[list(data.train.names).index(b"turned.jpg")][0].shape == (4, 10, 3)


@pytest.mark.parametrize("content", [b"no image at all", b""])
def test_a_broken_file_is_named_when_it_is_read(folder, content):
    (folder / "train/a/a.jpg").write_bytes(content)
    data = open_data(source="imagefolder", path=str(folder))
    with pytest.raises(ValueError, match=r"train/a/a.jpg: no readable image"):
        data.train[0]


def test_a_truncated_file_is_named(folder):
    whole = Image.effect_noise((200, 200), 50)
    whole.save(folder / "train/a/a.jpg")
    (folder / "train/a/a.jpg").write_bytes((folder / "train/a/a.jpg").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"train/a/a.jpg: no readable image \(.*truncated"):
        open_data(source="imagefolder", path=str(folder)).train[0]


def remove(folder, name):
    for path in sorted((folder / name).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / name).rmdir()


@pytest.mark.parametrize("damage,message", [
    (lambda f: remove(f, "val"), r"there is no val/ \(or test/\)"),
    (lambda f: remove(f, "train"), "there is no train/"),
    (lambda f: (remove(f, "train/a"), remove(f, "train/b")), "no class folders in .*train"),
    (lambda f: (f / "train/c").mkdir(), "no images .* in .*train/c"),
    (lambda f: [(f / "train" / name).mkdir() for name in "cde"],
     "train/c and 2 other class folders"),
    (lambda f: (f / "val/z").mkdir(), "val/z is no class of train/"),
    (lambda f: [(f / "val" / name).mkdir() for name in "xyz"], "val/x .*, nor are 2 others"),
    (lambda f: (f / "val/b/0.png").unlink(), "no images in .*val")])
def test_what_a_folder_must_hold(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=rf"^data.path = '{folder}': .*{message}"):
        open_data(source="imagefolder", path=str(folder))


def test_paths_that_are_no_folder(tmp_path):
    with pytest.raises(ValueError, match="data.path = ''"):
        open_data(source="imagefolder")
    with pytest.raises(ValueError, match="absent': must be a folder"):
        open_data(source="imagefolder", path=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="data.path = '/tmp': digits come with scikit-learn"):
        open_data(source="digits", path="/tmp")
