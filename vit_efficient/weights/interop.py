"""The authors' state_dicts <-> our variables, by the one rule of `names.py`.

`from_torch` and `to_torch` are public names of the package; `engine/pretrained.py` and the export
job call them with what `files.py` reads and writes. What a model declares for it stands in
`seams/model.py`: `order`, `official_names`, `optional` and `resize`.

    variables = from_torch(model, state_dict, adapt=("classes",))
    to_torch(model, variables)                        # numpy arrays in the official order

Nothing is read before all names, shapes and dtypes are right, and an error lists every difference.
`layout` says what a file must hold; `from_torch` takes out of it what may differ (`adapt`), reads
the rest, and makes anew what is missing.
"""
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import linen as nn, traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.layers.position import bicubic, resize_bicubic
from vit_efficient.seams.model import shapes
from vit_efficient.weights import names

ADAPT = ("classes", "heads", "image_size", "parts")
COUNTED = ("total_ops", "total_params")     # left in a state_dict by the counter of multiply-adds
LINES = 2000                                # of an error; no model has so many entries

# First word of what is wrong with an entry -> how the sum of such entries is called.
KINDS = {"missing,": "missing", "not": "not expected", "shape": "of another shape",
         "dtype": "of another dtype"}

Path = tuple[str, ...]


class Place(NamedTuple):
    """Where an official entry belongs: `path` with its collection, shape and dtype as in the
    file."""
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype


def official_names(model: nn.Module, path: Path) -> tuple[str, ...]:
    """All names that the array at `path` (collection first) has in the model's official files."""
    return model.official_names(path[1:]) or (names.official(path[1:]),)


@lru_cache(maxsize=4)
def layout(model: nn.Module) -> Mapping[str, Place]:
    """The entries of the model's official file, in its order."""
    found = {}
    for path, leaf in traverse_util.flatten_dict(shapes(model)).items():
        # A broadcast zero has the shape and none of the memory.
        array = names.to_official(path, np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape))
        for name in official_names(model, path):
            assert name not in found, f"{name} is the official name of two arrays"
            found[name] = Place(path, array.shape, array.dtype)
    return MappingProxyType({name: found[name] for name in _sorted(model, found)})


def to_torch(model: nn.Module, variables: dict) -> dict[str, np.ndarray]:
    """The official state_dict of the model's variables: numpy arrays in torch's layout, names in
    the official order; an array that the file lists twice is one array here too."""
    found = {}
    for path, value in traverse_util.flatten_dict(variables).items():
        array = np.array(names.to_official(path, np.asarray(value)), order="C")
        found |= dict.fromkeys(official_names(model, path), array)
    return {name: found[name] for name in _sorted(model, found)}


def from_torch(model: nn.Module, state_dict: Mapping[str, Any], *, adapt: Collection[str] = (),
               seed: int = 0) -> dict:
    """The model's variables with the weights of an official state_dict, numpy arrays.

    Args:
      state_dict: official name -> array, or anything with `shape` and `dtype` that `np.asarray`
        reads; nothing is read before all names and shapes are right.
      adapt: what may differ: "classes" (for another number of them the heads start anew, or are
        left out for `num_classes` 0), "heads" (they start anew in any case), "image_size" (position
        tables are resized), "parts" (what one of the model's options brings and the file lacks
        starts anew: SViTE's selector beside DeiT's weights).
      seed: of what starts anew.
    Raises:
      ValueError: lists every entry that is missing, not expected, of another shape or dtype, not
        finite, or unequal to another entry of the same array.
    """
    if isinstance(adapt, str) or set(adapt) - set(ADAPT):
        raise ValueError(f"adapt = {adapt!r}: may hold {', '.join(ADAPT)}")
    expected = layout(model)
    given = {name: value if isinstance(getattr(value, "dtype", None), np.dtype) else
             np.asarray(value) for name, value in state_dict.items()
             if name.rpartition(".")[2] not in COUNTED}
    fresh, tables = set(), {}
    if "classes" in adapt or "heads" in adapt:
        fresh = _drop_heads(model, expected, given, "heads" in adapt)
    if _wrong(expected, given):
        if "image_size" in adapt:
            tables, replaced = _resized(model, expected, given)
            fresh |= replaced
        if "parts" in adapt:
            fresh |= {place.path for name, place in expected.items() if name not in given
                      and set(name.split(".")) & set(model.optional)}
    checked = {name: place for name, place in expected.items()
               if place.path not in fresh and place.path not in tables}
    if problems := _wrong(checked, given):
        raise _misfit(model, problems, expected, given)
    values, problems = _values(checked, given)
    if problems:
        raise _misfit(model, problems, expected, given)
    return traverse_util.unflatten_dict(values | tables | _initial(model, fresh, seed))


def _sorted(model: nn.Module, found: Collection[str]) -> list[str]:
    return sorted(found, key=lambda name: names.sort_key(name, model.order))


def _wrong(expected: Mapping[str, Place], given: Mapping[str, Any]) -> dict[str, str]:
    """Entry -> what is wrong with its name, shape or dtype."""
    problems = {name: "not expected" for name in given.keys() - expected.keys()}
    for name, place in expected.items():
        if name not in given:
            problems[name] = f"missing, shape {place.shape}"
            continue
        shape, dtype = tuple(given[name].shape), np.dtype(given[name].dtype)
        if shape != place.shape:
            problems[name] = f"shape {shape}, must be {place.shape}"
        elif not (jnp.issubdtype(dtype, jnp.integer) if place.dtype.kind == "i" else
                  jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= place.dtype.itemsize):
            problems[name] = f"dtype {dtype}, must be {place.dtype}"
    return problems


def _values(expected: Mapping[str, Place],
            given: Mapping[str, Any]) -> tuple[dict[Path, np.ndarray], dict[str, str]]:
    """The arrays by path, read now, and what is wrong with their numbers."""
    values, first, problems = {}, {}, {}
    for name, place in expected.items():
        array = np.asarray(given[name]).astype(place.dtype, copy=False)
        value = names.from_official(place.path, array)
        if not np.isfinite(array).all():
            problems[name] = "holds numbers that are not finite"
        elif place.dtype.kind == "i" and (names.to_official(place.path, value) != array).any():
            problems[name] = f"{array}: too large"
        elif place.path in values and not np.array_equal(values[place.path], value):
            problems[name] = f"must equal {first[place.path]}, they are one array in the model"
        values.setdefault(place.path, value)
        first.setdefault(place.path, name)
    return values, problems


def _varying(model: nn.Module, expected: Mapping[str, Place], **changed) -> dict[str, Place]:
    """The entries of `model` or of the model with `changed` fields that the two do not share."""
    other = layout(model.clone(**changed))
    return {name: place for name, place in {**other, **expected}.items()
            if name not in expected or name not in other or other[name].shape != place.shape}


def _drop_heads(model: nn.Module, expected: Mapping[str, Place], given: dict,
                always: bool) -> set[Path]:
    """Takes the heads out of `given` where their class count is another, or `always`, and returns
    the paths that need new ones; all heads together, since half an old head is none."""
    heads = _varying(model, expected, num_classes=model.num_classes + 1)
    own = {name: place for name, place in heads.items() if name in expected}
    wrong = _wrong(own, {name: given[name] for name in heads.keys() & given.keys()})
    otherwise = [name for name in wrong if name in own and name in given
                 and tuple(given[name].shape)[1:] != own[name].shape[1:]]
    if otherwise or not (wrong or always):
        return set()
    for name in heads:
        given.pop(name, None)
    return {place.path for place in own.values()}


def _resized(model: nn.Module, expected: Mapping[str, Place],
             given: dict) -> tuple[dict[Path, np.ndarray], set[Path]]:
    """Takes the position tables of another grid out of `given`; returns them resized, and the
    paths of those that are constants and made anew."""
    tables, fresh = {}, set()
    for name, place in _varying(model, expected, image_size=2 * model.image_size).items():
        if name not in given or name not in expected or tuple(given[name].shape) == place.shape:
            continue
        if place.path[0] != "params":
            fresh.add(place.path)
        else:
            table = names.from_official(place.path, np.asarray(given[name], np.float32))
            like = names.from_official(place.path, np.broadcast_to(np.float32(0), place.shape))
            resize = model.resize or resize_positions
            try:
                tables[place.path] = np.asarray(resize(table, like.shape))
            except ValueError:
                continue                        # the shape stays wrong, and is reported
        del given[name]
    return tables, fresh


def resize_positions(table: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """A position table on another square grid by torch's bicubic, as in DeiT's main.py.

    [1, R, R, D], or [1, prefix + R * R, D] whose entries for the class and the distillation token
    are copied. Raises ValueError where the two shapes are not those of such tables.
    """
    if table.ndim == len(shape) == 4 and table.shape[1] == table.shape[2] and \
            shape[1] == shape[2] and table.shape[3] == shape[3]:
        return bicubic(table, shape[1])
    if table.ndim == len(shape) == 3 and table.shape[2] == shape[2]:
        for prefix in (0, 1, 2):
            fine, side = (_root(n - prefix) for n in (table.shape[1], shape[1]))
            if fine and side:
                return resize_bicubic(table, side, prefix)
    raise ValueError(f"{table.shape} and {shape} are no position tables on square grids")


def _root(n: int) -> int:
    """The square root of a square, else 0."""
    root = round(max(n, 0) ** 0.5)
    return root if root ** 2 == n else 0


def _initial(model: nn.Module, paths: Collection[Path], seed: int) -> dict[Path, np.ndarray]:
    """The model's own initial values of these arrays; the compiler leaves out all others."""
    if not paths:
        return {}
    side = model.image_size

    @jax.jit
    def create(key: jax.Array) -> dict:
        variables = traverse_util.flatten_dict(model.init(
            key, jnp.zeros((1, side, side, 3)), train=False), sep="/")
        return {"/".join(path): variables["/".join(path)] for path in paths}
    return {tuple(path.split("/")): np.asarray(value)
            for path, value in create(jax.random.key(seed)).items()}


def _misfit(model: nn.Module, problems: Mapping[str, str], expected: Mapping[str, Place],
            given: Mapping[str, Any]) -> ValueError:
    """The error that lists `problems`, and what their pattern says."""
    lines = [f"{name[:200]}: {text}" for name, text in sorted(problems.items())]
    lines = lines[:LINES] + ([f"and {len(lines) - LINES} more"] if lines[LINES:] else [])
    kinds = Counter(KINDS.get(text.split()[0], "with wrong numbers") for text in problems.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return ValueError(f"the state_dict does not fit the model ({counts}):\n  "
                      + "\n  ".join([*lines, *_hints(model, problems, expected, given)]))


def _hints(model: nn.Module, problems: Mapping[str, str], expected: Mapping[str, Place],
           given: Mapping[str, Any]) -> Iterator[str]:
    if 2 * len(expected.keys() & given.keys()) < len(expected):
        yield "most names do not fit: the file is of another kind of model"
    parts = lambda entries: {part for name in entries for part in name.split(".")}
    more, fewer = parts(given.keys() - expected.keys()), parts(expected.keys() - given.keys())
    for component, option in model.optional.items():
        if component in more ^ fewer:
            yield (f"{component} comes with model.{option}, which only "
                   f"{'the file' if component in more else 'this model'} has")
    if all(text.startswith("shape") for text in problems.values()):
        yield ("where only the class count or the image size differs, adapt = ('classes',) or "
               "('image_size',) makes the heads anew or resizes the position tables")
