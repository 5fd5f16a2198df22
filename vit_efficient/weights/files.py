"""Files of weights in every published layout, `.pth` and `.safetensors`, read and written.

The layouts: a bare state_dict (As-ViT, `.safetensors`); under `model`, with `model_ema`,
`optimizer`, `args` and masks beside it (Scala, SReT, SViTE, DeiT); under `model_state_dict`, with
thresholds and accuracies (DVT, released) or `state_dict`, with `state_dict_ema` (DVT, trained; SReT
by FKD). Names may begin with `module.`.
"""
from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np

from vit_efficient import disk
from vit_efficient.weights import safetensors, torch_zip
from vit_efficient.weights.entry import Entry, FileError

RAW = ("model", "model_state_dict", "state_dict")
AVERAGED = ("model_ema", "state_dict_ema")
# What the authors evaluate, where a file holds both.
PREFERRED = ("model", "model_state_dict", "state_dict_ema", "state_dict", "model_ema")
OURS = "vit_efficient"          # key of what an export says of its model
SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt")

# What a file that holds no weights begins with, and what it is then.
OTHERS = {
    b"\x80": "a pickle or a file of torch before 1.6: load it with torch.load(weights_only=True) "
             "and save it again with torch.save",
    b"<": "a web page, the download has failed",
    b"version https://git-lfs": "a Git LFS pointer, the file itself is still to be fetched",
    b"\x1f\x8b": "a compressed archive, unpack it first",
}


def read(path: Path) -> dict[str, Any]:
    """All that a file holds, arrays as `Entry`s: a `.pth` as it was saved, the arrays of a
    `.safetensors` file under `state_dict`.

    Raises FileNotFoundError, or FileError with the reason why the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if not start:
            raise FileError("the file is empty")
        for magic, what in OTHERS.items():
            if start.lstrip().startswith(magic):
                raise FileError(f"no weights: {what}")
        if start.startswith(b"PK"):
            tree = torch_zip.read(path)
            if not isinstance(tree, dict):
                raise FileError(f"holds a {type(tree).__name__}, must be a dict")
            return tree
        entries, metadata = safetensors.read(path)
        about = {OURS: _parsed(metadata[OURS])} if OURS in metadata else {}
        return {"state_dict": entries} | about
    except FileError as error:
        raise FileError(f"{path}: {error}") from error


def state_dict(tree: Mapping[str, Any], kind: str | None = None) -> dict[str, Entry]:
    """The "raw" or "ema" weights of what `read` gave; by default those that the authors evaluate.

    Raises FileError where there are none, naming the keys that are there.
    """
    if all(isinstance(value, Entry) for value in tree.values()) and kind != "ema":
        found = tree
    else:
        keys = {"raw": RAW, "ema": AVERAGED, None: PREFERRED}[kind]
        key = next((key for key in keys if isinstance(tree.get(key), Mapping)), None)
        if key is None:
            there = ", ".join(str(key)[:40] for key in list(tree)[:20]) or "nothing"
            raise FileError(f"the file holds {there}, must have a state_dict under "
                            f"{' or '.join(keys)}" + (" or be one" if kind != "ema" else ""))
        found = tree[key]
    wrong = [name for name, value in found.items()
             if not isinstance(name, str) or not isinstance(value, Entry)]
    if wrong or not found:
        raise FileError(f"the state_dict holds what is no array: {str(wrong[0])[:100]}" if wrong
                        else "the state_dict is empty")
    if all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return dict(found)


def check_new(path: Path) -> None:
    """Raises ValueError unless `path` can become a file of weights."""
    if not str(path).endswith(SUFFIXES):
        raise ValueError(f"{path}: must end with {' or '.join(SUFFIXES)}")
    if path.exists() or not path.parent.is_dir():
        raise ValueError(f"{path}: is there already, take it away or give another name"
                         if path.exists() else f"{path.parent}: there is no such folder")


def write(path: Path, state_dict: Mapping[str, np.ndarray], *, container: str = "",
          about: Mapping[str, Any] = {}, extras: Mapping[str, Any] = {}) -> None:
    """Writes a state_dict in its order, whole or not at all.

    Args:
      path: the suffix tells the format; there must be no such file.
      container: the key under which a `.pth` has the state_dict, "" for a bare one.
      about: JSON values that say which model it is, stored beside it (a bare `.pth` has no room).
      extras: what else the authors' files have beside the state_dict; for a `.pth`.
    """
    path = Path(path)
    check_new(path)
    with disk.whole(path) as neighbour:
        if path.suffix == ".safetensors":
            safetensors.write(neighbour, state_dict, {"format": "pt", OURS: json.dumps(about)})
        else:
            torch_zip.write(neighbour, {container: state_dict, **extras, OURS: about}
                            if container else state_dict)


def _parsed(text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    return about if isinstance(about, dict) else {}
