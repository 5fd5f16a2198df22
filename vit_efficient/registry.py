"""Finds by file name what the engine does not import: jobs, and what the papers bring.

A job `x` is the function `x` of `jobs/x.py`. A paper is a package `papers/<paper>/`, whose files
`models`, `objective`, `sparsity` and `phases` may hold a table `VARIANTS` of makers by name, and
whose `jobs.py` holds jobs for the config `<paper>.py`. So a new paper or job is a new file, and no
other file changes:

    registry.variants("models")["asvit_tiny"]      # the maker in papers/asvit/models.py
    registry.jobs("scala")                         # the engine's jobs and those of papers/scala
    registry.load_job("export", "scala")           # the function in papers/scala/jobs.py

Called by `zoo`, `settings/schema`, `main` and whoever builds a run; imports nothing of ours, so
that everything may import it. What a wrong name is answered with stands in `settings/values.py`.
"""
from collections.abc import Callable
import importlib
import importlib.util
import inspect
from pathlib import Path
import pkgutil
from types import ModuleType
from typing import Any

PACKAGE = __package__


def load(place: str) -> Any:
    """What stands at "module:name", imported now."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def papers() -> list[str]:
    """The names of the packages in `papers/`, sorted."""
    package = importlib.import_module(f"{PACKAGE}.papers")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg)


def variants(file: str) -> dict[str, Callable]:
    """The `VARIANTS` of `seams/<file>.py` and of `<file>.py` in every paper, merged by name.

    Raises ValueError where two files hold the same name, or a paper's file cannot be imported.
    """
    found: dict[str, Callable] = {}
    origin: dict[str, str] = {}
    for place in (f"seams.{file}", *(f"papers.{paper}.{file}" for paper in papers())):
        for name, make in getattr(_module(place), "VARIANTS", {}).items():
            if name in found:
                raise ValueError(f"{name} stands in {PACKAGE}.{origin[name]} and in "
                                 f"{PACKAGE}.{place}: a name belongs to one of them")
            found[name], origin[name] = make, place
    return found


def jobs(paper: str) -> list[str]:
    """The jobs that a config of `paper` has: the engine's and the paper's own, in this order."""
    package = importlib.import_module(f"{PACKAGE}.jobs")
    own = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [*own, *(name for name in paper_jobs(paper) if name not in own)]


def load_job(name: str, paper: str = "") -> Callable:
    """The function `job(config, workdir, *, own flags)` that is one of `jobs(paper)`; a paper's
    takes the place of the engine's of the same name, which `paper` "" gives."""
    return paper_jobs(paper).get(name) or load(f"{PACKAGE}.jobs.{name}:{name}")


def paper_jobs(paper: str) -> dict[str, Callable]:
    """The public functions that begin with (config, workdir) of `papers/<paper>/jobs.py`, {} where
    there is no such paper or file."""
    module = _module(f"papers.{paper}.jobs") if paper in papers() else None
    return {name: member for name, member in vars(module).items()
            if _is_job(member, module)} if module else {}


def _module(place: str) -> ModuleType | None:
    """The module, None where there is no such file; ValueError with the file where it fails."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{place}")
    if spec is None:
        return None
    try:
        return importlib.import_module(spec.name)
    except Exception as error:                          # whatever a paper's file does wrong
        what = " ".join(str(error).split())
        raise ValueError(f"{Path(spec.origin)}: cannot be imported, {type(error).__name__}: "
                         f"{what}") from error


def _is_job(member: Any, module: ModuleType) -> bool:
    """True for a public function of the module's own that begins with (config, workdir)."""
    return (inspect.isfunction(member) and member.__module__ == module.__name__
            and not member.__name__.startswith("_")
            and list(inspect.signature(member).parameters)[:2] == ["config", "workdir"])
