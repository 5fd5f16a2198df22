"""Configs on their way in and out: load a recipe, store it in a workdir, compare it with that one.

`main` and `vit_efficient.config` call `load`; a run stores its resolved config, so that a workdir
alone is enough to go on with it (`load_stored`), and another config there is refused
(`check_same_run`).

    config = load("asvit:digits", {"optim.lr": 1e-3})
    store(config, Path("runs/mine"))
    load_stored(Path("runs/mine")) == config
"""
from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vit_efficient import disk
from vit_efficient.settings.schema import flat, resolve
from vit_efficient.settings.words import find, read_file

# What may differ from the config stored in a workdir: it does not change what the run computes.
FREE = ("recipe", "loader", "log", "checkpoint", "mesh", "data.max_bad_records")
STORED = "config.json"


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
    text = json.dumps(config.to_dict(), indent=2, allow_nan=False)
    disk.write_text(workdir / STORED, text + "\n")


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
