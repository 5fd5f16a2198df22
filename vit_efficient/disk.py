"""A file is written whole or not at all: a kill or a power cut leaves the old one or the new one.

Everything that a run leaves besides checkpoints goes through here: configs, metrics, descriptions
of prepared sets and features, files of weights.

    with disk.whole(folder / "dataset.json") as path:
        path.write_text(text)                         # to a neighbour, which then takes the name
"""
from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished"          # ends the neighbour's name; a killed writer may leave it


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the path of a neighbour to write to; where the block ends without an error its bytes
    are flushed to the disk and it takes the place of `path`, else it is removed.

    A name must not outlive a power cut without its bytes, hence the flush. The neighbour's name
    follows from `path`, so that the next try writes over what a kill has left.
    """
    path = Path(path)
    neighbour = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        yield neighbour
        with open(neighbour, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text`, UTF-8, with its line ends as they are."""
    with whole(path) as neighbour:
        neighbour.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, record: Any) -> None:
    """Writes `record` as indented JSON, which must hold no number that is not finite."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
