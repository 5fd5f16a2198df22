"""Reads a fixture and remembers what was read: a number that no check looks at fails its test.

A fixture is an `.npz` of arrays and a JSON text `config`, which says `paper`, `layout` and in
`inputs` which arrays are given (glob patterns); all others are expected values.
"""
from collections.abc import Iterator
from fnmatch import fnmatch
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.fill import fill

# How a file was made and what is in it, in words; noise that was measured. Nothing to check.
DESCRIPTIVE = ("about", "build", "cli_defaults", "doc", "entries", "fixture",
               "float32_vs_float64_max_abs", "formula", "input_doc", "keys", "kind", "mask_rule",
               "method", "note", "origin", "outputs", "params_doc", "rule", "rules",
               "standalone_vs_sliced_max_abs_diff", "weight_scale_doc", "weights", "what")


class Tracked:
    """JSON that remembers which of its leaves were read."""

    def __init__(self, value: dict | list, path: str = "", seen: set[str] | None = None):
        self._value, self._path = value, path
        self._seen = set() if seen is None else seen

    def __getitem__(self, key: str | int) -> Any:
        value, path = self._value[key], f"{self._path}/{key}"
        if isinstance(value, dict | list):
            return Tracked(value, path, self._seen)
        self._seen.add(path)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        return self[key] if key in self._value else default

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def __iter__(self) -> Iterator:
        """A dict's keys, a list's members."""
        if isinstance(self._value, dict):
            return iter(self._value)
        return (self[i] for i in range(len(self._value)))

    def __len__(self) -> int:
        return len(self._value)

    def items(self) -> Iterator[tuple[str, Any]]:
        """As a dict's."""
        return ((key, self[key]) for key in self._value)

    def plain(self) -> Any:
        """All of it as ordinary dicts and lists, every leaf read."""
        self._seen.update(_leaves(self._value, self._path))
        return self._value

    def unread(self, descriptive: tuple[str, ...] = DESCRIPTIVE) -> list[str]:
        """The paths of leaves that were not read, without those below a descriptive key."""
        return [path for path in _leaves(self._value, self._path) if path not in self._seen
                and not set(path.split("/")) & set(descriptive)]


class Fixture:
    """One file: `config`, arrays that are `given`, and arrays to `expect`."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as file:
            self._arrays = {name: file[name] for name in file.files}
        self._texts = {name: Tracked(json.loads(str(self._arrays.pop(name))), name)
                       for name, array in list(self._arrays.items()) if array.dtype.kind == "U"
                       and not array.ndim}
        self.config, self.folder = self._texts["config"], path.parent
        self.paper, self.layout = self.config["paper"], self.config["layout"]
        self._inputs = self.config["inputs"].plain()
        self._read: set[str] = set()

    def text(self, name: str) -> Tracked:
        """A JSON text beside `config`, as `params` or `aliases`."""
        return self._texts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays or name in self._texts

    def matching(self, pattern: str) -> list[str]:
        """Names of arrays that match a glob pattern."""
        return [name for name in self._arrays if fnmatch(name, pattern)]

    def given(self, name: str) -> np.ndarray:
        """An input of the check."""
        assert self.is_given(name), f"{name} is an expected value, compare it with `expect`"
        self._read.add(name)
        return self._arrays[name]

    def is_given(self, name: str) -> bool:
        """True where `inputs` lists the array."""
        return any(fnmatch(name, pattern) for pattern in self._inputs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, given or expected; this is not reading it."""
        return self._arrays[name].shape

    def expect(self, name: str, value: Any, *, atol: float | np.ndarray = 0.0,
               rtol: float = 0.0) -> None:
        """Compares `value` with the expected array: shape, and |difference| <= atol + rtol |it|,
        where `atol` is a number or one for each element."""
        assert not self.is_given(name), f"{name} is given, read it with `given`"
        self._read.add(name)
        expected, value = self._arrays[name], np.asarray(value)
        assert value.shape == expected.shape, f"{name}: {value.shape}, expected {expected.shape}"
        if expected.dtype.kind in "fc":
            error = np.where(value == expected, 0, np.abs(np.subtract(value, expected)))
            far = ~(error <= atol + rtol * np.abs(expected))
            assert not far.any(), (f"{name}: {far.sum()} of {far.size} too far, the first at "
                                   f"{np.argwhere(far)[0]}, the furthest by {error[far].max()}")
        else:
            np.testing.assert_array_equal(value, expected, err_msg=name)

    def values(self, name: str) -> np.ndarray:
        """An expected array whose comparison is no plain difference."""
        assert not self.is_given(name), f"{name} is given, read it with `given`"
        self._read.add(name)
        return self._arrays[name]

    def params(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Official name -> (shape, dtype) of the state_dict, in its order."""
        return {name: (tuple(shape), dtype) for name, shape, dtype in self.text("params").plain()}

    def state_dict(self, aliases: dict[str, str] = {}, suffix: str = "") -> dict[str, np.ndarray]:
        """The filled weights; an entry of `aliases` has those of another name."""
        return {name: fill(aliases.get(name, name) + suffix, shape).astype(dtype)
                for name, (shape, dtype) in self.params().items()}

    def unread(self) -> list[str]:
        """What no check has looked at: arrays, and the leaves of the JSON texts."""
        return ([name for name in self._arrays if name not in self._read]
                + [path for text in self._texts.values() for path in text.unread()])


def constructed(kwargs: dict, renamed: dict[str, str], fixed: dict[str, Any]) -> dict[str, Any]:
    """Options of our maker for the arguments of an official constructor: some have another name
    here, and `fixed` are those that our models do not have, with the only value of each."""
    for name in kwargs.keys() & fixed.keys():
        assert kwargs[name] == fixed[name], (
            f"{name} = {kwargs[name]}: the models here have only {fixed[name]}")
    return {renamed.get(name, name): value for name, value in kwargs.items() if name not in fixed}


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in items:
            yield from _leaves(member, f"{path}/{key}")
    else:
        yield path
