"""The `.pth` format of `torch.save` (torch 1.6 and later): a zip archive without compression that
holds a pickle, which names the arrays, and the bytes of every storage.

`weights/files.py` calls `read` and `write`, neither of which needs torch. Reading takes
`torch.load(weights_only=True)` further: the pickle is read as a description (`pickles.py`), and
every claim is held against the archive before an array is made. A damaged storage is noticed by the
archive's checksum. Read `read` first, then `_Storages`, which answers the description's references,
then what builds tensors; `write` stands below and needs none of it.

    write(path, {"model": {"head.weight": np.zeros((10, 192), np.float32)}})
    read(path)["model"]["head.weight"]                # an Entry: shape and dtype, not read yet
"""
from collections.abc import Mapping
import io
import math
from pathlib import Path
import struct
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

from vit_efficient.weights.entry import Entry, FileError
from vit_efficient.weights.pickles import MAX_BYTES, Built, Namespace, Ordered, describe

MAX_DIRECTORY = 8 << 20     # bytes of the archive's list of files
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2",
            "BFloat16Storage": jnp.bfloat16, "LongStorage": "<i8", "IntStorage": "<i4",
            "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}
STORAGES = {name: np.dtype(dtype) for name, dtype in STORAGES.items()}
TYPES = {dtype: name for name, dtype in STORAGES.items()}


def read(path: Path) -> Any:
    """The value that was saved: dicts, lists and numbers, arrays as `Entry`s, an
    `argparse.Namespace` as a dict; FileError for any other or damaged content."""
    try:
        archive = zipfile.ZipFile(_Bounded(path))
        pickle = _checked(archive, path.stat().st_size)
        storages = _Storages(archive, pickle.filename.removesuffix("data.pkl"))
        if storages.text("byteorder", "little") != "little":
            raise FileError("the file is big-endian: save it again on another machine")
        return describe(archive.read(pickle), KNOWN, storages.find)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError,
            struct.error) as error:
        raise FileError(f"the archive is damaged: {error}"[:300]) from error


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes nested dicts, lists, texts, numbers and arrays as `torch.save` does; an array that
    stands in several places is stored once."""
    arrays: list[np.ndarray] = []
    pickle = b"\x80\x02" + _spell(tree, arrays, {}) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def add(name: str, data: bytes) -> None:        # without a date: equal weights, equal file
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        add("data.pkl", pickle)
        add("byteorder", b"little")
        for key, array in enumerate(arrays):
            add(f"data/{key}", array.tobytes())
        add("version", b"3\n")


class _Bounded(io.FileIO):
    """A file of which no one reads much at once before the archive is checked."""

    def __init__(self, path: Path):
        super().__init__(path, "rb")
        self.limit = MAX_DIRECTORY

    def read(self, size: int = -1) -> bytes:
        if size > self.limit:
            raise FileError(f"the archive's list of files has {size} bytes, more than {self.limit}")
        return super().read(size)

    def __del__(self) -> None:
        self.close()        # entries keep the file open until the last of them goes


def _checked(archive: zipfile.ZipFile, size: int) -> zipfile.ZipInfo:
    """The entry of the pickle in an archive of `size` bytes, whose entries are plain and fit."""
    entries = archive.infolist()
    if len({entry.filename for entry in entries}) != len(entries):
        raise FileError("the archive holds a name twice")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 \
                or entry.compress_size != entry.file_size:
            raise FileError(f"{entry.filename[:100]} is compressed or encrypted, torch.save does "
                            "neither")
    if sum(entry.file_size for entry in entries) > size:
        raise FileError("the archive claims more bytes than the file has")
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FileError("no weights: the archive holds no data.pkl of torch.save" if not pickles
                        else "the archive holds several data.pkl")
    if pickles[0].file_size > MAX_BYTES:
        raise FileError(f"a pickle of {pickles[0].file_size} bytes, more than {MAX_BYTES}")
    archive.fp.limit = size
    return pickles[0]


class _Storage(NamedTuple):
    """The numbers that tensors look at."""
    archive: zipfile.ZipFile
    name: str
    dtype: np.dtype
    count: int


class _Storages:
    """The storages of an archive, by the persistent ids of its pickle."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder
        self.sizes = {entry.filename: entry.file_size for entry in archive.infolist()}

    def text(self, name: str, default: str) -> str:
        """A short text of the archive."""
        name = self.folder + name
        if self.sizes.get(name, MAX_BYTES) > 100:
            return default
        return self.archive.read(name).decode("ascii", "replace").strip()

    def find(self, reference: tuple) -> _Storage:
        """The storage of ("storage", dtype, key, device, count)."""
        kind, dtype, key, _, count = reference
        name = f"{self.folder}data/{key}"
        if kind != "storage" or not isinstance(dtype, np.dtype) or name not in self.sizes:
            raise FileError(f"the pickle names a storage {str(key)[:40]} that is not there")
        if self.sizes[name] != _whole(count) * dtype.itemsize:
            raise FileError(f"storage {key} claims {count} numbers of {dtype.itemsize} bytes, the "
                            f"archive holds {self.sizes[name]} bytes")
        return _Storage(self.archive, name, dtype, count)


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> Entry:
    """`torch._utils._rebuild_tensor_v2`, without making the tensor."""
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 16:
        raise ValueError("a tensor without storage or strides")
    count = math.prod(map(_whole, shape))
    last = _whole(offset) + sum((n - 1) * _whole(stride) for n, stride in zip(shape, strides))
    if count > storage.count or count and last >= storage.count:
        raise FileError(f"a tensor of shape {list(shape)} claims more numbers than the "
                        f"{storage.count} of its storage")

    def load() -> np.ndarray:
        try:
            numbers = np.frombuffer(storage.archive.read(storage.name), storage.dtype)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise FileError(f"{storage.name} is damaged: {error}") from error
        strided = [stride * storage.dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(numbers[offset:] if count else numbers[:0],
                                               shape, strided, writeable=False)
    return Entry(tuple(shape), storage.dtype, load)


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"{str(number)[:40]} is no size")
    return number


class _Dtype(Built):
    """`numpy.dtype(code, ...)` of a number."""

    def __init__(self, code: str, *_):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "fiub":
            raise FileError(f"a numpy array of {code}, must be of numbers")

    def build(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(Entry, Built):
    """`numpy.core.multiarray._reconstruct(...)`, empty until its state comes."""

    def __init__(self, *_):
        super().__init__((0,), np.dtype("f4"), lambda: np.zeros(0, "f4"))

    def build(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")
        super().__init__(array.shape, array.dtype, lambda: array)


def _scalar(dtype: _Dtype, data: bytes) -> float | int | bool:
    (number,) = np.frombuffer(data, dtype.dtype).tolist()
    return number


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode("latin1")


# All that official files need, and what stands for it here.
KNOWN: dict[str, Any] = {
    "collections OrderedDict": Ordered,
    "argparse Namespace": Namespace,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch Size": lambda sizes: tuple(sizes),
    "_codecs encode": _encode,
    "numpy ndarray": None,
    "numpy dtype": _Dtype,
    **{f"{module}.multiarray {name}": function for module in ("numpy.core", "numpy._core")
       for name, function in {"_reconstruct": _Array, "scalar": _scalar}.items()},
    **{f"torch {name}": dtype for name, dtype in STORAGES.items()},
}


def _spell(value: Any, arrays: list[np.ndarray], keys: dict[int, int]) -> bytes:
    """The pickle instructions that put `value` on the stack."""
    again = lambda member: _spell(member, arrays, keys)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, tuple):
        return b"(" + b"".join(map(again, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(again, value)) + b"e"
    if isinstance(value, Mapping):
        return b"}(" + b"".join(again(key) + again(value[key]) for key in value) + b"u"
    if id(value) not in keys:
        keys[id(value)] = len(arrays)
        arrays.append(value)
    key, strides = keys[id(value)], np.cumprod([1, *value.shape[:0:-1]])[::-1].tolist()
    storage = (b"(" + again("storage") + f"ctorch\n{TYPES[value.dtype]}\n".encode()
               + again(str(key)) + again("cpu") + again(value.size) + b"tQ")
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + again(0)
            + again(tuple(value.shape)) + again(tuple(strides[:value.ndim])) + b"\x89"
            + b"ccollections\nOrderedDict\n)RtR")
