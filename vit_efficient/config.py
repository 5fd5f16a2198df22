"""Configs: load a recipe, override, check, store.

A group of a config is the keyword-only arguments of one function (GROUPS), so its keys, types,
ranges and defaults stand in that signature and a key that nobody reads is an error. A door group
(DOORS) has a `name` and the arguments of the function of that name, from the engine or any room. A
group named like a job holds that job's arguments. A resolved config holds every key.
"""
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
import json
import os
from pathlib import Path
import traceback
from typing import Any, Literal
import uuid

from ml_collections import ConfigDict

from vit_efficient import rooms
from vit_efficient.limits import Count, Positive, Whole
from vit_efficient.values import allowed, check, choices, closest, hint, keywords, nearest, parse

GROUPS = {
    "data": "vit_efficient.data.sources:open_data",
    "augment": "vit_efficient.data.augment:make_augment",
    "loader": "vit_efficient.data.loader:train_batches",
    "optim": "vit_efficient.optim:make_optimizer",
    "step": "vit_efficient.step:make_step",
    "teacher": "vit_efficient.run:load_teacher",
    "init": "vit_efficient.pretrained:given_weights",
    "validation": "vit_efficient.evaluate:Validation",
    "mesh": "vit_efficient.sharding:make_mesh",
    "checkpoint": "vit_efficient.checkpoint:Checkpoints",
    "log": "vit_efficient.train:Loop",
}
# Door group -> the file of the rooms that holds its doors, the name where the config says none.
DOORS = {
    "model": ("models", None),
    "objective": ("objective", "supervised"),
    "sparsity": ("sparsity", "dense"),
    "phases": ("phases", "constant"),
}
# What may differ from the config stored in a workdir: it does not change what the run computes.
FREE = ("recipe", "loader", "log", "checkpoint", "mesh", "data.max_bad_records")
STORED = "config.json"
FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs")

Flat = dict[str, Any]                                     # {"seed": 0, "optim.lr": 1e-3}


def run(*, recipe: str = "", seed: Whole = 0, epochs: Positive, batch_size: Count,
        dtype: Literal["bfloat16", "float32"] = "bfloat16", init_from: str = "") -> None:
    """The keys outside of groups; never called.

    Args:
      recipe: the config's file and words ("asvit:digits"), set on loading; the file's name is the
        room of its jobs.
      seed: what every random number of the run follows from.
      epochs: length of the run, in passes over the training set.
      batch_size: images of an optimiser step, on all devices together.
      dtype: of activations and matrix products; parameters and losses are float32.
      init_from: the weights that the run starts from: an official file, an export, the workdir of
        another run or one of its steps (DIR/checkpoints/STEP); "" starts from random ones.
    """


def load(recipe: str, overrides: Mapping[str, Any] = {}) -> ConfigDict:
    """The resolved config of `recipe` with `overrides`, locked and type-safe.

    Args:
      recipe: "asvit" (a file of configs/) or "path/to/asvit.py", then ":word,key=value" for its
        `get_config`.
      overrides: {"optim.lr": 1e-3}; a str is read as on the command line, by the key's annotation.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: all that is wrong: file, key, value, what is allowed, the nearest name.
    """
    path, words = find(recipe)
    config = read_file(path, words)
    name = f"{path.stem}:{words}" if words else path.stem
    return resolve({**config, "recipe": name}, overrides, str(path))


def load_stored(workdir: Path, overrides: Mapping[str, Any] = {}) -> ConfigDict:
    """The config stored in `workdir`, resolved again; FileNotFoundError where there is none."""
    path = Path(workdir) / STORED
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no {STORED}: give --config=FILE, or the workdir "
                                "of a run")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no readable JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds no config, but {config!r}")
    return resolve(config, overrides, str(path))


def store(config: ConfigDict, workdir: Path) -> None:
    """Writes `config` to `workdir`/config.json, whole or not at all; makes the folder."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / f".{STORED}.{uuid.uuid4().hex}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(config.to_dict(), indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, workdir / STORED)
    finally:
        temporary.unlink(missing_ok=True)


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError with every key in which `config` differs from the one stored in `workdir`.

    The groups and keys FREE may differ. Without a stored config everything is right.
    """
    if not (Path(workdir) / STORED).is_file():
        return
    there, here, none = flat(load_stored(workdir)), flat(config), "no such key"
    lines = [f"  {key} = {there.get(key, none)} there, {here.get(key, none)} here"
             for key in there | here
             if not {key, key.partition(".")[0]} & set(FREE)
             and there.get(key, none) != here.get(key, none)]
    if lines:
        raise ValueError("\n".join([
            f"{Path(workdir) / STORED} is the config of another run:", *lines,
            "give a new --workdir, or leave out --config and these overrides to go on with the "
            f"stored run (only {', '.join(FREE[1:])} may differ)"]))


def flat(config: Mapping[str, Any]) -> Flat:
    """{"seed": 0, "optim": {"lr": 1}} as {"seed": 0, "optim.lr": 1}; unknown empty groups stay."""
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    result: Flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and (value or name in (*GROUPS, *DOORS)):
            result.update({f"{name}.{key}": member for key, member in value.items()})
        else:
            result[name] = value
    return result


def resolve(config: Mapping[str, Any], overrides: Mapping[str, Any] = {},
            source: str = "config") -> ConfigDict:
    """`config` with `overrides` and every default filled in, checked; locked and type-safe.

    An override of `model.name` keeps the group's other keys where the new door takes them too,
    except those that its name stands for (`asvit_small` is `asvit` with an `arch`).
    Raises ValueError with everything that is wrong; `source` is the file that its text names.
    """
    values = flat(config)
    keys, unsure = schema(values | overrides)
    for key in _left_behind(values, overrides, keys):
        del values[key]
    values |= overrides
    texts = {key for key, value in overrides.items() if isinstance(value, str)}
    problems, full = [], {}
    for key, value in values.items():
        if key not in keys and key.partition(".")[0] not in unsure:
            shown = value if key in texts else repr(value)
            problems.append(f"{key} = {shown}: {_unknown(key, keys)}")
    for key, parameter in keys.items():
        group, _, name = key.rpartition(".")
        value = values.get(key, parameter.default)
        if value is Parameter.empty:
            if group in ("", *GROUPS, *DOORS):          # a job's flag may still say what is missing
                problems.append(f"{key} is missing: must be {allowed(parameter.annotation)}")
            continue
        place = full.setdefault(group, {}) if group else full
        try:
            place[name] = (parse if key in texts else check)(value, parameter.annotation)
        except ValueError as error:
            problems.append(f"{key} = {value if key in texts else repr(value)}: {error}")
    if problems:
        raise ValueError("\n  ".join([f"{source}:", *problems] if problems[1:] else
                                     [f"{source}: {problems[0]}"]))
    return ConfigDict(full, type_safe=True).lock()


def schema(values: Flat) -> tuple[dict[str, Parameter], set[str]]:
    """Every key that a config may have, and the door groups whose other keys cannot be known.

    `values` decides the doors by its names, and which jobs have groups.
    """
    keys, unsure = keywords(run), set()

    def add(group: str, function: Callable) -> None:
        keys.update({f"{group}.{name}": p for name, p in keywords(function).items()})

    for group, place in GROUPS.items():
        add(group, rooms.load(place))
    for group, (file, usual) in DOORS.items():
        doors = rooms.doors(file)
        default = Parameter.empty if usual is None else usual
        keys[f"{group}.name"] = Parameter("name", Parameter.KEYWORD_ONLY, default=default,
                                          annotation=Literal[tuple(sorted(doors))])
        name = values.get(f"{group}.name", usual)
        if isinstance(name, str) and name in doors:
            add(group, doors[name])
        else:
            unsure.add(group)
    others = {key.partition(".")[0] for key in values} - {*keywords(run), *GROUPS, *DOORS}
    room = str(values.get("recipe", "")).partition(":")[0]
    for group in sorted(others.intersection(rooms.job_names(room) if others else ())):
        add(group, rooms.job(group, room))
    return keys, unsure


def find(recipe: str) -> tuple[Path, str]:
    """The file and the words of "asvit:digits" or "path/to/asvit.py:digits".

    Raises FileNotFoundError with the nearest name, ValueError for a colon without words.
    """
    if ".py:" in recipe:                                # C:\\asvit.py has another colon
        name, colon, words = recipe.partition(".py:")[0] + ".py", ":", recipe.partition(".py:")[2]
    elif recipe.endswith(".py"):
        name, colon, words = recipe, "", ""
    else:
        name, colon, words = recipe.partition(":")
    if colon and not words:
        raise ValueError(f"{recipe}: no words after the colon")
    bare = not name.endswith(".py") and name == Path(name).name
    paths = [folder / f"{name}.py" for folder in FOLDERS] if bare else [Path(name).expanduser()]
    for path in paths:
        if path.is_file():
            return path, words
    known = sorted({file.stem for folder in FOLDERS for file in folder.glob("[!_]*.py")})
    raise FileNotFoundError(f"{name}: no such config, {nearest(Path(name).stem, known)}")


def read_file(path: Path, words: str = "") -> dict[str, Any]:
    """What the file's `get_config` returns for `words`, as a plain dict.

    Raises ValueError with file and line for whatever goes wrong in it.
    """
    namespace = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
        get_config = namespace.get("get_config")
        if not callable(get_config):
            raise ValueError("has no function get_config")
        config = get_config(**read_words(words, get_config))
        if not isinstance(config, ConfigDict):
            raise ValueError(f"get_config must return a ConfigDict, not {config!r}")
        return config.to_dict()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:                          # whatever the file does wrong
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
        what = " ".join(str(error).split())
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {what}") from error


def read_words(words: str, get_config: Callable) -> dict[str, Any]:
    """The arguments that "word,key=value" means for `get_config`, by its parameters' annotations.

    A word belongs to the parameter whose `Literal` holds it. A value that itself holds a comma
    comes last and takes the rest. Raises ValueError for an unknown, doubled or misplaced word.
    """
    parameters = {name: parameter.annotation for name, parameter in
                  signature(get_config, eval_str=True).parameters.items()}
    homes: dict[str, list[str]] = {}
    for name, annotation in parameters.items():
        for choice in choices(annotation):
            homes.setdefault(str(choice), []).append(name)
    texts: dict[str, str] = {}
    last, rest = "", False              # the parameter that would take the rest, and whether it has
    for piece in words.split(",") if words else ():
        key, equals, text = piece.partition("=")
        named = equals and key in parameters
        if not named and piece not in homes:
            misspelt = key.isidentifier() and closest(key, [*homes, *parameters])
            if not last or not piece or misspelt:
                there = [*homes, *(f"{name}=" for name, a in parameters.items() if not choices(a))]
                raise ValueError(f":{words}: no such word {piece!r}, {nearest(piece, there)}")
            texts[last], rest = f"{texts[last]},{piece}", True
            continue
        if rest:
            raise ValueError(f"{last}={texts[last]}: holds a comma, so it comes last; put {piece} "
                             "before it")
        if not named and len(homes[piece]) > 1:
            raise ValueError(f"{piece}: write {f'={piece} or '.join(homes[piece])}={piece}")
        name, text, last = (key, text, key) if named else (homes[piece][0], piece, "")
        if not text or name in texts:
            raise ValueError(f"{piece}: the value is empty" if not text else
                             f"{piece}: {name} is given twice, as {texts[name]} and {text}")
        texts[name] = text
    return {name: _argument(name, text, parameters[name]) for name, text in texts.items()}


def _argument(name: str, text: str, annotation: Any) -> Any:
    try:
        return parse(text, annotation)
    except ValueError as error:
        raise ValueError(f"{name}={text}: {error}") from None


def _left_behind(values: Flat, overrides: Mapping[str, Any],
                 keys: Mapping[str, Parameter]) -> list[str]:
    """The keys of `values` that belonged to a door which `overrides` replaces."""
    former, left = schema(values)[0], []
    for group, (file, _) in DOORS.items():
        if f"{group}.name" in overrides:
            door = rooms.doors(file).get(str(overrides[f"{group}.name"]))
            bound = {f"{group}.{key}" for key in getattr(door, "keywords", ())}     # of a partial
            left += [key for key in values if key.startswith(f"{group}.") and key in former
                     and (key not in keys or key in bound)]
    return left


def _unknown(key: str, keys: Mapping[str, Parameter]) -> str:
    """What is wrong with a key that is none of `keys`, and which there are."""
    group = key.partition(".")[0]
    inside = [name.partition(".")[2] for name in keys if name.startswith(f"{group}.")]
    if inside:
        what = "it is a group" if key == group else f"no such key{hint(key, keys)}"
        return f"{what} ({group} has {', '.join(inside)})"
    groups = dict.fromkeys(name.partition(".")[0] for name in keys)
    return "no such key" + (hint(key, keys) or f" (there are {', '.join(groups)})")
