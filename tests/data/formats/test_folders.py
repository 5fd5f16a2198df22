"""Image folders against what lies in them."""
from PIL import Image
import pytest

from vit_efficient.data.sources import open_data


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


def test_an_encoded_example_is_the_file(folder):
    train = open_data(source="imagefolder", path=str(folder)).train
    assert train.encoded(2) == ((folder / "train/b/10.JPEG").read_bytes(),
                                str(folder / "train/b/10.JPEG"), 1)
    assert train.short_name(2) == "b/10.JPEG"


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
    (lambda f: (f / "val/b/0.png").unlink(), "no images .* in .*val")])
def test_what_a_folder_must_hold(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=rf"^data.path = '{folder}': .*{message}"):
        open_data(source="imagefolder", path=str(folder))
