"""Files that are damaged, hostile or of another kind; what each is refused with."""
from collections.abc import Callable
import json
from pathlib import Path
import pickle
import struct
import zipfile

import numpy as np

GIB = 2 ** 30
# Pickles, protocol 2: `call` needs a name of a module, `tensor` shows a storage in a shape.
OPEN = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape: tuple, strides: tuple, count: int, offset: int = 0, key: str = "0",
           kind: str = "FloatStorage") -> bytes:
    storage = (b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
               + number(count) + b"tQ")
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape)
            + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")


def state(*entries: tuple[str, bytes]) -> bytes:
    return OPEN + b"}(" + b"".join(text(name) + value for name, value in entries) + b"u."


def call(module: str, name: str, argument: bytes) -> bytes:
    return f"c{module}\n{name}\n(".encode() + argument + b"tR"


def archive(path: Path, data: bytes, storages: dict[str, bytes] = {"0": bytes(64)},
            compression: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        for key, content in storages.items():
            file.writestr(f"archive/data/{key}", content)
        for name, content in more.items():
            file.writestr(f"archive/{name}", content)
        file.writestr("archive/version", "3\n")


def header(path: Path, entries: dict | bytes, data: bytes = b"", length: int | None = None) -> None:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)


def claim(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def sparse(path: Path) -> None:
    """Eight honest GiB of zeros that take no room on disk, in an array of no model."""
    header(path, {"big": claim([2 * GIB], 0, 8 * GIB)})
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + 8 * GIB)


def bomb(path: Path) -> None:
    """An archive that would grow a thousandfold."""
    archive(path, state(("x", tensor((2 ** 24,), (1,), 2 ** 24))),
            {"0": bytes(2 ** 26)}, zipfile.ZIP_DEFLATED)


def twice(path: Path) -> None:
    archive(path, state(("x", tensor((16,), (1,), 16))))
    with zipfile.ZipFile(path, "a") as file:
        file._didModify = True
        file.NameToInfo.clear()
        file.writestr("archive/data.pkl", state())


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def evil(protocol: int, bare: bool = False) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        data = pickle.dumps({"model": Evil(path.parent / "executed")}, protocol)
        path.write_bytes(data) if bare else archive(path, data)
    return build


def pth(data: bytes, **more) -> Callable[[Path], None]:
    return lambda path: archive(path, data, **more)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def tensors(*entries: tuple[str, dict], data: bytes = b"", **more) -> Callable[[Path], None]:
    return lambda path: header(path, dict(entries), data, **more)


def npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, x=np.zeros(3))


# What each is -> (how it is made, what the error says)
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle that writes a file": (evil(2), "needs (pathlib[._a-zA-Z]+|__builtin__.getattr)"),
    "the same in protocol 4": (evil(4), "needs (pathlib[._a-zA-Z]+|builtins.getattr)"),
    "the same without an archive": (evil(2, bare=True), "torch before 1.6"),
    "os.system": (pth(OPEN + call("posix", "system", text("touch executed")) + b"."),
                  "needs posix.system, which weights have no use for; it was not run"),
    "a bytearray of 10 GB": (pth(OPEN + call("builtins", "bytearray", number(10 ** 10)) + b"."),
                             "needs builtins.bytearray"),
    "INST": (pth(b"(S'touch executed'\nios\nsystem\n."), "uses STRING"),
    "a name of the extension registry": (pth(OPEN + b"\x82\x01."), "uses EXT1"),
    "a call of what is no function": (pth(OPEN + b"K\x01)R."), "this cannot be called"),
    "a state for what has none": (pth(OPEN + b"}}b."), "this has no state"),
    "4 GiB from one number": (pth(state(("x", tensor((GIB,), (0,), 16)))), "claims more numbers"),
    "a view beyond its storage": (pth(state(("x", tensor((4, 4), (4, 1), 16, offset=1)))),
                                  "claims more numbers"),
    "a negative stride": (pth(state(("x", tensor((4,), (-1,), 16)))), "-1 is no size"),
    "a storage of 4 GiB": (pth(state(("x", tensor((GIB,), (1,), GIB)))), "storage 0 claims"),
    "a storage that is missing": (pth(state(("x", tensor((4,), (1,), 4, key="7")))), "storage 7"),
    "a storage outside": (pth(state(("x", tensor((4,), (1,), 4, key="../../0")))), "is not there"),
    "a memo of 32 GiB": (pth(OPEN + b"Nr\xff\xff\xff\xff."), "holds a NoneType, must be a dict"),
    "text of 4 GiB": (pth(OPEN + b"X\xff\xff\xff\xffabc."), "pickle is damaged"),
    "four million lists": (pth(OPEN + b"]" * (4 << 20)), "more than 4194304"),
    "lists in lists": (pth(OPEN + b"]" * 200_000 + b"a" * 199_999 + b"."), "holds a list"),
    "a pickle without end": (pth(OPEN + b"}"), "pickle is damaged"),
    "an empty stack": (pth(OPEN + b"0R."), "pickle"),
    "a numpy array of 8 TiB": (pth(OPEN + call(
        "numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\nK\x00\x85U\x01b")
        + b"(K\x01" + numbers((2 ** 40,)) + call("numpy", "dtype", text("f8")) + b"\x89C\x01atb."),
        "pickle is damaged"),
    "a numpy array of objects": (pth(OPEN + call("numpy", "dtype", text("O8")) + b"."),
                                 "must be of numbers"),
    "a compressed storage": (bomb, "is compressed"),
    "a name twice": (twice, "holds a name twice"),
    "an archive of numpy": (npz, "holds no data.pkl"),
    "the other byte order": (pth(state(), byteorder=b"big"), "big-endian"),
    "the head of an archive": (raw(b"PK\x03\x04" + bytes(200)), "archive is damaged"),
    "numbers instead of arrays": (pth(state(("model", b"}(" + text("x") + b"K\x01u"))),
                                  "what is no array: x"),
    "an optimiser alone": (pth(state(("optimizer", b"}"), ("epoch", b"K\x01"))),
                           "holds optimizer, epoch, must have a state_dict under model or"),
    "a list": (pth(OPEN + b"]."), "holds a list"),
    "a header longer than the file": (tensors(("x", claim([1], 0, 4)), data=bytes(4), length=900),
                                      "does not fit"),
    "a header of 2^63 bytes": (tensors(length=2 ** 63), "does not fit"),
    "a header of 9 MiB": (lambda path: header(path, b" " * (9 << 20)), "more than 8388608"),
    "a header in no JSON": (lambda path: header(path, b"{'x': 1}"), "no weights"),
    "a header as deep as long": (lambda path: header(path, b"[" * 1_000_000), "no weights"),
    "a header that is a list": (lambda path: header(path, b"[]"), "no JSON object"),
    "arrays that overlap": (tensors(("a", claim([2], 0, 8)), ("b", claim([2], 4, 12)),
                                    data=bytes(12)), "b begins at byte 4"),
    "arrays with a gap": (tensors(("a", claim([1], 0, 4)), ("b", claim([1], 8, 12)),
                                  data=bytes(12)), "b begins at byte 8"),
    "arrays beyond the file": (tensors(("a", claim([2 ** 40], 0, 2 ** 42))), "the file holds 0"),
    "bytes after the arrays": (tensors(("a", claim([1], 0, 4)), data=bytes(5)), "the file holds 5"),
    "a shape that its bytes do not fill": (tensors(("a", claim([3], 0, 4)), data=bytes(4)),
                                           "has 12 bytes, data_offsets give 4"),
    "a shape beyond 64 bits": (tensors(("a", claim([2 ** 62, 2 ** 62, 0], 0, 4)), data=bytes(4)),
                               "data_offsets give 4"),
    "a negative size": (tensors(("a", claim([-1, -1], 0, 4)), data=bytes(4)), "must have a dtype"),
    "a size that is true": (tensors(("a", claim([True], 0, 4)), data=bytes(4)), "must have"),
    "an unknown dtype": (tensors(("a", claim([1], 0, 4, "X32")), data=bytes(4)), "dtype X32"),
    "two arrays of one name": (lambda path: header(
        path, b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":'
              b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'), "a name twice"),
    "metadata of lists": (tensors(("__metadata__", {"a": []})), "must hold texts"),
    "8 GiB of another model": (sparse, "big: not expected"),
    "an empty file": (raw(b""), "the file is empty"),
    "a web page": (raw(b"<!DOCTYPE html><html>Google Drive"), "a web page"),
    "a Git LFS pointer": (raw(b"version https://git-lfs.github.com/spec/v1\noid"), "Git LFS"),
    "a compressed archive": (raw(b"\x1f\x8b\x08"), "unpack it first"),
    "seven bytes": (raw(b"1234567"), "does not fit"),
}
