"""Finds by name what the engine does not import: the doors and jobs of a paper's folder, its room.

A room is a package `vit_efficient/<room>/`. Its files `models`, `objective`, `sparsity`, `phases`
may hold a table `VARIANTS` of doors, its `jobs.py` the jobs of the config `<room>.py`. A new room
is found by its files alone.
"""
from collections.abc import Callable
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from types import ModuleType
from typing import Any

from vit_efficient.values import nearest

JOBS = {
    "train": "vit_efficient.train:train",
    "evaluate": "vit_efficient.evaluate:evaluate",
    "summary": "vit_efficient.summary:summary",
    "benchmark": "vit_efficient.benchmark:benchmark",
    "plan": "vit_efficient.plan:plan",
    "export": "vit_efficient.export:export",
    "prepare": "vit_efficient.prepare:prepare",
    "features": "vit_efficient.features:features",
}


def load(place: str) -> Any:
    """What stands at "module:name", imported now."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def doors(file: str) -> dict[str, Callable]:
    """The `VARIANTS` of `vit_efficient/<file>.py` and of `<file>.py` in every room, merged by name.

    Raises ValueError where two files hold the same name.
    """
    found: dict[str, Callable] = {}
    origin: dict[str, str] = {}
    for place in (file, *(f"{room}.{file}" for room in _rooms())):
        for name, make in getattr(_module(place), "VARIANTS", {}).items():
            if name in found:
                raise ValueError(f"{name} stands in vit_efficient.{origin[name]} and in "
                                 f"vit_efficient.{place}: a name belongs to one room")
            found[name], origin[name] = make, place
    return found


def door(file: str, name: str) -> Callable:
    """The door `name` of any room's `file`; ValueError with the nearest name if there is none."""
    found = doors(file)
    if name not in found:
        group = "model" if file == "models" else file
        raise ValueError(f"{group}.name = {name}: {nearest(name, found)}")
    return found[name]


def jobs(room: str) -> ModuleType | None:
    """The module `vit_efficient/<room>/jobs.py`, None where there is no such room or file."""
    return _module(f"{room}.jobs") if room in _rooms() else None


def job_names(room: str) -> list[str]:
    """The jobs that a config of `room` has: the engine's and the room's own."""
    return [*JOBS, *(name for name in _own_jobs(room) if name not in JOBS)]


def job(name: str, room: str) -> Callable:
    """The function `job(config, workdir, *, own flags)` called `name`, of `room` or of the engine;
    a room's may take the place of the engine's.

    Raises ValueError with the nearest name where there is none.
    """
    names = job_names(room)
    if name not in names:
        raise ValueError(f"--job={name}: no such job, {nearest(name, names)}")
    return _own_jobs(room).get(name) or load(JOBS[name])


def _own_jobs(room: str) -> dict[str, Callable]:
    module = jobs(room)
    return {name: member for name, member in vars(module).items()
            if _is_job(member, module)} if module else {}


def _rooms() -> list[str]:
    package = sys.modules[__package__]
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg)


def _module(name: str) -> ModuleType | None:
    name = f"{__package__}.{name}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def _is_job(member: Any, module: ModuleType) -> bool:
    """True for a public function of the module's own that begins with (config, workdir)."""
    return (inspect.isfunction(member) and member.__module__ == module.__name__
            and not member.__name__.startswith("_")
            and list(inspect.signature(member).parameters)[:2] == ["config", "workdir"])
