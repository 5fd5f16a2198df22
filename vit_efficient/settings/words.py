"""Recipes: find a config file by its name, read its words, call its `get_config`.

`settings/store.load` calls `find` and `read_file`, then `schema.resolve` fills and checks the rest:

    find("asvit:base,p56")              # (configs/asvit.py, "base,p56")
    read_words("base,p56", get_config)  # {"variant": "base", "schedule": "p56"}

A word belongs to the parameter of `get_config` whose `Literal` holds it; a parameter without one is
written `key=value`. No word has a meaning beside these annotations.
"""
from collections.abc import Callable
from inspect import signature
from pathlib import Path
import traceback
from typing import Any, get_args, get_type_hints

from ml_collections import ConfigDict

from vit_efficient.settings.values import choices, closest, nearest, parse

# Beside the package in a checkout, inside it where it was installed.
FOLDERS = (Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs")


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

    A value that itself holds a comma comes last and takes the rest, as `arch=8,2,3|4,1,2`.
    Raises ValueError for an unknown, doubled or misplaced word.
    """
    parameters = _parameters(get_config)
    texts: dict[str, str] = {}
    for name, text, piece in _assignments(words, _homes(parameters), parameters):
        if not text:
            raise ValueError(f"{piece}: the value is empty")
        if name in texts:
            raise ValueError(f"{piece}: {name} is given twice, as {texts[name]} and {text}")
        texts[name] = text
    return {name: _argument(name, text, parameters[name]) for name, text in texts.items()}


def _parameters(get_config: Callable) -> dict[str, Any]:
    """Name -> annotation of what `get_config` takes; `**images: Unpack[Images]` stands for the keys
    of the TypedDict `Images`, which several recipes share."""
    found: dict[str, Any] = {}
    for name, parameter in signature(get_config, eval_str=True).parameters.items():
        shared = parameter.kind is parameter.VAR_KEYWORD
        found |= get_type_hints(*get_args(parameter.annotation)) if shared else {
            name: parameter.annotation}
    return found


def _homes(parameters: dict[str, Any]) -> dict[str, list[str]]:
    """Word -> the parameters whose `Literal` holds it."""
    homes: dict[str, list[str]] = {}
    for name, annotation in parameters.items():
        for choice in choices(annotation):
            homes.setdefault(str(choice), []).append(name)
    return homes


def _assignments(words: str, homes: dict[str, list[str]],
                 parameters: dict[str, Any]) -> list[tuple[str, str, str]]:
    """`(parameter, text, the piece of `words` that says so)`, in their order."""
    found: list[tuple[str, str, str]] = []
    open_ended = ""         # the key of the `key=value` before, whose value may hold a comma
    took_rest = False       # and whether it does
    for piece in words.split(",") if words else ():
        key, equals, text = piece.partition("=")
        named = bool(equals) and key in parameters
        if not named and piece not in homes:
            misspelt = key.isidentifier() and closest(key, [*homes, *parameters])
            if not open_ended or not piece or misspelt:
                there = [*homes, *(f"{name}=" for name, a in parameters.items() if not choices(a))]
                raise ValueError(f":{words}: no such word {piece!r}, {nearest(piece, there)}")
            name, text, first = found.pop()
            found.append((name, f"{text},{piece}", first))
            took_rest = True
            continue
        if took_rest:
            raise ValueError(f"{open_ended}={found[-1][1]}: holds a comma, so it comes last; put "
                             f"{piece} before it")
        if not named and len(homes[piece]) > 1:
            raise ValueError(f"{piece}: write {f'={piece} or '.join(homes[piece])}={piece}")
        found.append((key, text, piece) if named else (homes[piece][0], piece, piece))
        open_ended = key if named else ""
    return found


def _argument(name: str, text: str, annotation: Any) -> Any:
    try:
        return parse(text, annotation)
    except ValueError as error:
        raise ValueError(f"{name}={text}: {error}") from None
