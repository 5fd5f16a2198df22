"""Reads the authors' `.pth` files into numpy, without torch and without running what a pickle
asks for."""
from argparse import Namespace
from collections import OrderedDict
from math import prod
from pathlib import Path
import pickle
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

_DTYPES = {"FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
           "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
           "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
           "BoolStorage": np.bool_}


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to the file, tensors as numpy arrays.

    Only containers, numbers, strings, tensors and `argparse.Namespace` are made. Raises ValueError
    for a file of another kind, for any other class in it and for a tensor larger than its data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            with archive.open(names["data.pkl"]) as file:
                return _Unpickler(file, archive, names).load()
    except (zipfile.BadZipFile, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: no file of torch.save (torch 1.6 or later): {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _Unpickler(pickle.Unpickler):
    """A pickle may name any function to be called: this one knows six, and tensors' data."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, names: dict[str, str]):
        super().__init__(file)
        self._archive, self._names = archive, names

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        allowed = {"collections.OrderedDict": OrderedDict, "argparse.Namespace": Namespace,
                   "torch.Size": tuple, "torch._utils._rebuild_tensor_v2": _tensor,
                   "torch._utils._rebuild_parameter": lambda data, *_: data}
        if f"{module}.{name}" not in allowed:
            raise ValueError(f"it asks for {module}.{name}; only {', '.join(allowed)} are read")
        return allowed[f"{module}.{name}"]

    def persistent_load(self, place: tuple) -> np.ndarray:
        _, dtype, key, *_ = place
        return np.frombuffer(self._archive.read(self._names[f"data/{key}"]), dtype)


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """A strided view of a storage, copied."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A stride of 0 would let a small file claim any amount of memory.
    if prod(size) > storage.size or prod(size) and not 0 <= last < storage.size or min(
            (offset, *stride)) < 0:
        raise ValueError(f"a tensor of shape {tuple(size)} in {storage.size} stored numbers")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()
