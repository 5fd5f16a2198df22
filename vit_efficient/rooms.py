"""Finds a room's doors by name: a paper's folder is seen because it is there, and no file of the engine names one."""
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module, util
import pkgutil
from types import ModuleType

import vit_efficient

SEAMS = ("models", "objective", "sparsity", "phases")


def module(name: str) -> ModuleType | None:
    """`vit_efficient.<name>`, or `None` where there is no such file; an error inside the file is its own."""
    full = f"{vit_efficient.__name__}.{name}"
    parent = full.rpartition(".")[0]
    try:
        import_module(parent)
    except ModuleNotFoundError as error:
        if not (error.name and full.startswith(error.name)):
            raise
        return None
    return import_module(full) if util.find_spec(full) else None


def doors(seam: str) -> dict[str, Callable]:
    """`VARIANTS` of the engine's and of every room's file of that name, merged: name -> function.

    Raises ValueError where two rooms claim one name.
    """
    found, owner = {}, {}
    rooms = sorted(info.name for info in pkgutil.iter_modules(vit_efficient.__path__) if info.ispkg)
    for name in (seam, *(f"{room}.{seam}" for room in rooms)):
        for variant, make in getattr(module(name), "VARIANTS", {}).items():
            if variant in found:
                raise ValueError(f"{variant!r} stands in vit_efficient.{owner[variant]} and in vit_efficient.{name}: "
                                 "a name belongs to one room")
            found[variant], owner[variant] = make, name
    return found


def door(seam: str, name: str) -> Callable:
    """The function of that name; raises ValueError with the nearest names where there is none."""
    found = doors(seam)
    if name not in found:
        group = "model" if seam == "models" else seam
        raise ValueError(f"{group}.name = {name}: {nearest(name, found)}")
    return found[name]


def nearest(name: str, allowed) -> str:
    """What to say of a wrong name: the nearest right one, and what is allowed where that fits a line."""
    allowed = sorted(allowed)
    close = get_close_matches(name, allowed, 1, 0.5)
    listed = ", ".join(allowed)
    parts = [f"did you mean {close[0]}?"] if close else []
    if len(listed) < 200 or not close:
        parts.append(f"allowed: {listed or 'none'}")
    return " ".join(parts)
