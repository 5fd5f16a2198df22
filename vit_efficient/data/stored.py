"""What a teacher said of every training image, computed once and stored: `teacher.stored`.

A folder of two files, which `--job=features` writes and any other program may:

`features.npy`, float16, NumPy's own format, row i of example i of the training set in the order of
its source (of an image folder: classes and files by name, as torchvision's ImageFolder):

    kind      shape              row i
    "class"   [n, D]             the class token after the last norm
    "tokens"  [n, 1 + P, D]      the class token, then the P patches' tokens, row by row
    "logits"  [n, K]             the logits of the data set's K classes

`features.json`: {"format": 1, "kind": ..., "crop": the centre crop's side as a share of the resized
short side, "labels": [...], "means": [...]}, the last two of the 64 examples `sampled(n)`: label,
and mean of the decoded image's RGB values, 0 to 255. They show that it is the same set in the same
order. Other keys ("model", for a reader) are free. From torch:

    data = torchvision.datasets.ImageFolder("PATH/train", transform)     # centre crop, normalised
    n, row = len(data), 0
    out = np.lib.format.open_memmap("DIR/features.npy", "w+", np.float16, (n, 768))
    for images, _ in torch.utils.data.DataLoader(data, 256, num_workers=16):
        out[row:row + len(images)] = dinov2(images.cuda()).cpu()         # [b, 768]
        row += len(images)
    out.flush()
    seen = [k * n // 64 for k in range(64)]
    about = {"format": 1, "kind": "class", "crop": 0.875, "labels": [data.targets[i] for i in seen],
             "means": [float(np.mean(data.loader(data.imgs[i][0]))) for i in seen]}
    json.dump(about, open("DIR/features.json", "w"))
"""
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vit_efficient.data.badrecords import BadImage

ARRAY, ABOUT, FORMAT, SAMPLED = "features.npy", "features.json", 1, 64
AXES = {"class": 2, "tokens": 3, "logits": 2}
MEAN_TOLERANCE = 2.0     # of 255: decoders differ, and a set may hold its images made smaller

Kind = Literal["class", "tokens", "logits"]


def sampled(count: int) -> list[int]:
    """The examples of `count` that tell one data set from another, spread evenly."""
    return [k * count // SAMPLED for k in range(SAMPLED)]


def describe(source, examples: list[int]) -> tuple[list[int], list[float | None]]:
    """Labels of these examples and means of their images, both None for a bad record."""
    labels, means = [], []
    for i in examples:
        try:
            image, label = source[i]
            labels.append(int(label))
            means.append(float(np.asarray(image).mean()))
        except BadImage:
            labels.append(None)
            means.append(None)
    return labels, means


class Stored:
    """The rows of a stored teacher by example: float16 arrays of `shape`; worker processes map the
    file for themselves."""

    def __init__(self, folder: Path):
        """ValueError where `folder` does not hold what this file's docstring says."""
        self.folder = Path(folder).expanduser()
        try:
            self.about: dict[str, Any] = json.loads((self.folder / ABOUT).read_text("utf-8"))
            array = np.load(self.folder / ARRAY, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self}: cannot be read ({error}); --job=features writes such a "
                             "folder") from error
        wrong = self._wrong(array)
        if wrong:
            raise ValueError(f"{self}: {wrong}")
        self.kind, self.count, self.shape = self.about["kind"], len(array), array.shape[1:]
        self._array = None

    def _wrong(self, array: np.ndarray) -> str:
        """What is not as the format says, or ""."""
        about = self.about if isinstance(self.about, dict) else {}
        if about.get("format") != FORMAT or about.get("kind") not in AXES:
            return f"{ABOUT} must say format {FORMAT} and a kind of {', '.join(AXES)}"
        missing = [key for key in ("crop", "labels", "means") if key not in about]
        if missing or len(about["labels"]) != SAMPLED or len(about["means"]) != SAMPLED:
            return f"{ABOUT} must have crop, and labels and means of {SAMPLED} examples"
        if array.dtype != np.float16 or array.ndim != AXES[about["kind"]] or not array.size:
            return (f"{ARRAY} holds {array.dtype}{list(array.shape)}, {about['kind']} is "
                    f"float16 with {AXES[about['kind']]} axes")
        return ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        if self._array is None:
            self._array = np.load(self.folder / ARRAY, mmap_mode="r")
        return self._array[i]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_array": None}      # a pickled memory map would be its whole array

    def __str__(self) -> str:
        return f"teacher.stored = '{self.folder}'"

    def check_length(self, count: int) -> None:
        """ValueError unless there is a row for each of `count` examples."""
        if self.count != count:
            raise ValueError(f"{self}: has {self.count} rows, the training set {count} examples")

    def check_source(self, source) -> None:
        """ValueError unless the sampled examples are those of `source`, in its order, and their
        rows are finite."""
        self.check_length(len(source))
        examples = sampled(self.count)
        labels, means = describe(source, examples)
        for i, label, mean, own, seen in zip(examples, labels, means, self.about["labels"],
                                             self.about["means"]):
            if None in (label, own):
                continue
            if label != own or abs(mean - seen) > MEAN_TOLERANCE:
                raise ValueError(
                    f"{self}: made from other images or another order than {source}: example {i} "
                    f"had label {own} and mean {seen:.1f}, here label {label} and mean {mean:.1f}")
            if not np.isfinite(self[i]).all():
                raise ValueError(f"{self}: row {i} holds numbers that are not finite")

    def check_augment(self, augment) -> None:
        """ValueError where training images cannot be what was stored; `augment` is that group.

        Mixed images need mixed targets, and a patch's token needs its patch in its place: "tokens"
        go with the evaluated centre crop alone, whose colours may change or parts be erased. A
        class token or logits of the centre crop are taken for any other view of the image too,
        which is an approximation: a teacher that sees the same view teaches better (Beyer et al.,
        CVPR 2022, "A good teacher is patient and consistent").
        """
        for key in ("mixup", "cutmix"):
            if augment[key]:
                raise ValueError(f"{self}: goes with augment.{key} = 0, not {augment[key]:g}: the "
                                 "teacher has seen no mixed images")
        if self.kind != "tokens":
            return
        for key, needed in (("crop", "center"), ("flip", 0.0), ("randaugment", None),
                            ("eval_crop", self.about["crop"])):
            if augment[key] != needed:
                raise ValueError(f"{self}: its tokens are those of the centre crop's patches, set "
                                 f"augment.{key} = {needed}, not {augment[key]}")

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the description, the shape and the sampled rows."""
        digest = hashlib.sha256(json.dumps([self.about, self.count, self.shape],
                                           sort_keys=True).encode())
        for i in sampled(self.count):
            digest.update(self[i].tobytes())
        return digest.hexdigest()[:16]
