"""The `.safetensors` format: eight bytes with the header's length, a header in JSON, the arrays.

`weights/files.py` calls `read` and `write`; `.safetensors` is what other libraries exchange, and
unlike a `.pth` it holds arrays and texts alone. Reading trusts nothing: sizes are those of the
file, the arrays fill it without gap or overlap, and no array is made before it is asked for.

    write(path, {"head.weight": np.zeros((10, 192), np.float32)}, {"format": "pt"})
    entries, metadata = read(path)
    np.asarray(entries["head.weight"])                # read from the file now
"""
from collections.abc import Mapping
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_efficient.weights.entry import Entry, FileError

MAX_HEADER = 8 << 20        # bytes; a model of 1,000 arrays has 0.1 MB
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "I64": "<i8",
          "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2",
          "U8": "<u1", "BOOL": "?"}
DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """(name -> array, the metadata) of a file; FileError where a claim of its header is wrong."""
    with open(path, "rb") as file:
        size, start = path.stat().st_size, file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            raise FileError(f"a header of {length} bytes does not fit the {size} of the file")
        if length > MAX_HEADER:
            raise FileError(f"a header of {length} bytes, more than {MAX_HEADER}")
        header = _parse(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError("__metadata__ must hold texts")
    spans, entries = [], {}
    for name, claim in header.items():
        shape, dtype, (begin, end) = _claim(name, claim)
        spans.append((begin, end, name))
        entries[name] = Entry(shape, dtype, _reader(path, shape, dtype, 8 + length + begin))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise FileError(f"{name} begins at byte {begin} of the data, must begin at {position}")
        position = end
    if position != size - 8 - length:
        raise FileError(f"the arrays claim {position} bytes, the file holds {size - 8 - length}")
    return entries, metadata


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {}) -> None:
    """Writes the arrays, names in their order; the data of wide numbers come first, since other
    readers want them aligned."""
    by_width = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    ends = np.cumsum([arrays[name].nbytes for name in by_width], dtype=np.int64).tolist()
    spans = dict(zip(by_width, zip([0, *ends], ends)))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, array in arrays.items():
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape),
                        "data_offsets": list(spans[name])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in by_width:
            file.write(arrays[name].tobytes())


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise FileError("the header gives a name twice")
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError("no weights: the file begins neither as a .pth nor as a .safetensors "
                        "file") from error
    if not isinstance(header, dict):
        raise FileError("the header is no JSON object")
    return header


def _claim(name: str, claim: Any) -> tuple[tuple[int, ...], np.dtype, tuple[int, int]]:
    """Shape, dtype and span of one entry of the header, checked against one another."""
    whole = lambda numbers: isinstance(numbers, list) and all(
        type(n) is int and 0 <= n < 2 ** 63 for n in numbers)
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"} \
            or not whole(claim["shape"]) or not whole(claim["data_offsets"]) \
            or len(claim["shape"]) > 16 or len(claim["data_offsets"]) != 2:
        raise FileError(f"{name[:200]}: must have a dtype, a shape and data_offsets")
    if not isinstance(claim["dtype"], str) or claim["dtype"] not in DTYPES:
        raise FileError(f"{name[:200]}: dtype {str(claim['dtype'])[:40]}, there are "
                        f"{', '.join(DTYPES)}")
    dtype, (begin, end) = DTYPES[claim["dtype"]], claim["data_offsets"]
    size = math.prod(claim["shape"]) * dtype.itemsize
    if end - begin != size:
        raise FileError(f"{name[:200]}: {dtype}{claim['shape']} has {size} bytes, data_offsets "
                        f"give {end - begin}")
    return tuple(claim["shape"]), dtype, (begin, end)


def _reader(path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int):
    def load() -> np.ndarray:
        array = np.fromfile(path, dtype, math.prod(shape), offset=offset)
        if array.size != math.prod(shape):
            raise FileError("the file has become shorter")
        return array.reshape(shape)
    return load
