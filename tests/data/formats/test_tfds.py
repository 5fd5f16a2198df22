"""Data sets of TensorFlow Datasets, as it lays them out, read where importing TensorFlow fails."""
import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.data.formats.sets import SETS
from tests.data.image_files import encode
from tests.runs import ROOT

tfds = pytest.importorskip("tensorflow_datasets")

from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer, naming, splits as tfds_splits

from vit_efficient.data.sources import open_data


def write(name: str, folder: Path, splits: dict[str, int], file_format="array_record") -> Path:
    """Writes a tiny prepared set with the registered builder's own features and file names; the red
    of an image is 10 times its number, the label its number."""
    builder = tfds.builder(name, data_dir=folder, file_format=file_format)
    place, features, infos = Path(builder.data_dir), builder.info.features, []
    place.mkdir(parents=True)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    for split, count in splits.items():
        template = naming.ShardedFileTemplate(
            data_dir=place, dataset_name=builder.name, split=split, filetype_suffix=file_format)
        writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)),
                                   "group_size:1")
        for i in range(count):
            kind = features["image"].get_tensor_info().shape[0] and "PNG" or "JPEG"
            side = features["image"].shape[0] or 40
            image = Image.new("RGB", (side, side), (10 * i, 0, 0))
            path = folder / f"image.{kind}"
            path.write_bytes(encode(image, kind))
            blank = {"id": 0 if name == "i_naturalist2021" else "x", "file_id": "x",
                     "file_name": "x", "supercategory": 0, "coarse_label": 0}
            example = {"image": str(path), "label": i, **blank}
            writer.write(serializer.serialize_example(features.encode_example(
                {key: example[key] for key in features})))
        writer.close()
        infos.append(tfds_splits.SplitInfo(name=split, shard_lengths=[count], num_bytes=0,
                                           filename_template=template))
    builder.info.set_splits(tfds_splits.SplitDict(infos))
    builder.info.write_to_directory(place)
    return place


@pytest.mark.parametrize("name", SETS)
def test_registered_sets_by_their_names_and_splits(tmp_path, name, monkeypatch):
    train, val, classes = SETS[name]
    with monkeypatch.context() as patch:
        if name == "i_naturalist2021":        # the package lacks the file with its classes' names
            label = tfds.features.ClassLabel
            patch.setattr(tfds.features, "ClassLabel", lambda names_file: label(
                num_classes=11 if "super" in str(names_file) else classes))
        write(name, tmp_path, {train: 4, "test": 1, val: 2})
    data = open_data(source="tfds", name=name, path=str(tmp_path), max_bad_records=3)
    assert (len(data.train), len(data.val), data.num_classes) == (4, 2, classes)
    assert str(data.val) == f"{name} {val}" and data.train.max_bad_records == 3
    for i in range(4):
        image, label = data.train[i]
        assert label == i and abs(int(np.asarray(image)[0, 0, 0]) - 10 * i) <= 2


READ = """
import os, pickle, sys
from vit_efficient.data.sources import open_data
data = open_data(source="tfds", name="cifar10", path=sys.argv[1])
train = pickle.loads(pickle.dumps(data.train))                          # as a worker process does
assert [train[i][0][0, 0].tolist() for i in range(3)] == [[0, 0, 0], [10, 0, 0], [20, 0, 0]]
assert data.val[1][1] == 1 and "tensorflow" not in sys.modules
try:
    open_data(source="tfds", name="cifar100", path=sys.argv[1])
except ValueError as error:
    print(error)
try:
    import tensorflow
except RuntimeError as error:
    print(error)
"""


def test_tensorflow_is_never_imported(tmp_path):
    """It is installed here, as a package whose import is an error."""
    stub = tmp_path / "stub" / "tensorflow"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise RuntimeError('TensorFlow was imported')")
    write("cifar10", tmp_path / "data", {"train": 3, "test": 2})
    path = os.pathsep.join([str(stub.parent), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "data")], text=True,
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr
    refused, stubbed = done.stdout.splitlines()
    assert "cifar100: is not prepared" in refused and stubbed == "TensorFlow was imported"


def test_a_set_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(ValueError, match="data.name = cifar10: is not prepared in ") as error:
        open_data(source="tfds", name="cifar10", path=str(tmp_path))
    command = str(error.value).partition('python -c "')[2]
    assert command == ("import tensorflow_datasets as tfds; tfds.builder('cifar10', data_dir='"
                       f"{tmp_path}', file_format='array_record').download_and_prepare()\"")
    with pytest.raises(ValueError, match="manual_dir='FOLDER'.*FOLDER: .*ILSVRC2012_img_train.tar"):
        open_data(source="tfds", name="imagenet2012", path=str(tmp_path))


def test_a_set_that_cannot_be_prepared_says_what_to_do_instead(tmp_path):
    with pytest.raises(ValueError, match="i_naturalist2021: .* cannot prepare it .*labels.*data."
                                         "source = imagefolder, data.path = PATH"):
        open_data(source="tfds", name="i_naturalist2021", path=str(tmp_path))


def test_a_set_prepared_as_tfrecord_says_how_to_convert_it(tmp_path):
    place = write("cifar10", tmp_path, {"train": 1, "test": 1}, file_format="tfrecord")
    assert json.loads((place / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"
    with pytest.raises(ValueError, match=f"data.name = cifar10: {place} is prepared as tfrecord.*"
                                         "python -m tensorflow_datasets.scripts.convert_format "
                                         f"--dataset_version_dir={place} "
                                         "--out_file_format=array_record$"):
        open_data(source="tfds", name="cifar10", path=str(tmp_path))


@pytest.mark.parametrize("name,message", [
    ("i_naturalist2019", "TensorFlow Datasets has no such data set, did you mean i_naturalist20"),
    ("imagenette/3px", "data.name = imagenette/3px: .*320px"),
    ("cifar10:9.9.9", "data.name = cifar10:9.9.9: is not prepared")])
def test_names_that_there_are_not(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        open_data(source="tfds", name=name, path=str(tmp_path))


def test_a_set_without_labelled_images(tmp_path):
    place = write("cifar10", tmp_path, {"train": 1})
    with pytest.raises(ValueError, match="must have the splits train and one of validation, val, "
                                         "test; prepared are train$"):
        open_data(source="tfds", name="cifar10", path=str(tmp_path))
    features = json.loads((place / "features.json").read_text())
    features["featuresDict"]["features"].pop("label")
    (place / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"an image and a class label, has id \(Text\), "):
        open_data(source="tfds", name="cifar10", path=str(tmp_path))


def test_pixels_are_the_encoded_ones(tmp_path):
    write("imagenet2012", tmp_path, {"train": 2, "validation": 1})
    train = open_data(source="tfds", name="imagenet2012", path=str(tmp_path)).train
    data, name, label = train.encoded(1)
    assert data == encode(Image.new("RGB", (40, 40), (10, 0, 0)), "JPEG")
    assert name == "imagenet2012 train, example 1" and label == 1
    assert train.classes[:2] == ("n01440764", "n01443537")
    np.testing.assert_array_equal(train[1][0].shape, (40, 40, 3))
