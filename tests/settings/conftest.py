"""The toy engine in place of the real one, and a recipe for it."""
from types import ModuleType

import pytest

from tests.settings import toys
from vit_efficient import registry
from vit_efficient.settings import schema


@pytest.fixture
def engine(monkeypatch):
    """The groups of the toy engine, models of a toy paper `asvit` and its job `search`."""
    jobs, real = ModuleType("toy_jobs"), registry._module
    monkeypatch.setattr(schema, "GROUPS", toys.GROUPS)
    monkeypatch.setattr(schema, "SEAMS", {**schema.SEAMS, "model": ("toy_models", None)})
    monkeypatch.setattr(toys.search, "__module__", "toy_jobs")
    jobs.search = toys.search
    modules = {"seams.toy_models": toys.models(), "papers.asvit.jobs": jobs}
    monkeypatch.setattr(registry, "_module", lambda name: modules.get(name) or real(name))


@pytest.fixture
def recipe(tmp_path) -> str:
    """The path of a file `asvit.py` that holds it."""
    path = tmp_path / "asvit.py"
    path.write_text(toys.RECIPE)
    return str(path)
