"""The flags of a command line, read strictly.

absl with ml_collections takes in silence what is refused here: forgotten dashes (`config.lr=5`,
`-job=train`), stray words, everything after `--`, the last of two equal flags. `main` calls
`split`, then `typed` for each flag that it or the job knows, and `refuse_unknown` for the rest.

    split(["--config=asvit:digits", "--workdir", "runs/a"], ["config", "workdir"])
    # {"config": "asvit:digits", "workdir": "runs/a"}
"""
from collections.abc import Iterable, Mapping
from inspect import Parameter
import re
from typing import Any

from vit_efficient.settings.values import allowed, closest, hint, parse


def split(argv: list[str], known: Iterable[str]) -> dict[str, str | None]:
    """`--name=value`, `--name value`, `--name` (None) as a dictionary; ValueError for all else."""
    found: dict[str, str | None] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not re.match("--[A-Za-z_]", word):
            meant = name if name.startswith("config.") else closest(name, known)
            advice = f", did you mean --{meant}{equals}{value}?" if meant else ", see --help"
            raise ValueError(f"{word}: a flag is written --name=value{advice}")
        if not equals:
            value = words.pop(0) if words and re.match(r"[^-]|-[\d.]|$", words[0]) else None
        if value == "":
            raise ValueError(f"--{name}=: the value is empty")
        if name in found:
            raise ValueError(f"--{name} is given twice: {found[name]} and {value}")
        found[name] = value
    return found


def typed(name: str, text: str | None, annotation: Any) -> Any:
    """The value of the flag `name`, which only a bool may leave out."""
    if text is None and annotation is not bool:
        raise ValueError(f"--{name} needs a value: --{name}=VALUE")
    try:
        return parse("true" if text is None else text, annotation)
    except ValueError as error:
        raise ValueError(f"--{name}={text}: {error}") from None


def refuse_unknown(found: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for a flag that is none of `known` and no key of the config."""
    for name in found:
        if name not in known and not name.startswith("config."):
            raise ValueError(f"--{name}: no such flag{hint(name, known, '--') or ', see --help'}")


def table(parameters: Mapping[str, Parameter]) -> list[str]:
    """A line for each flag: its name, what is allowed, the default."""
    lines = [f"  --{name}=VALUE  {allowed(p.annotation)}" for name, p in parameters.items()]
    defaults = [p.default for p in parameters.values()]
    return [line + ("" if default is Parameter.empty else f"; default {default!r}")
            for line, default in zip(lines, defaults)]
