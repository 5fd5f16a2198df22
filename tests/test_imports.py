"""The house's rules of imports, by the syntax tree: folders form a ladder, papers stand apart."""
import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vit_efficient"
FILES = sorted(str(file.relative_to(PACKAGE).with_suffix("")) for file in PACKAGE.rglob("*.py")
               if file.name != "__init__.py" or file.stat().st_size)
# What a file may import stands on its own step or further down.
LADDER = [["registry", "disk"], ["settings"], ["seams", "zoo"], ["layers", "data"], ["weights"],
          ["engine"], ["measure"], ["jobs"]]
STEP = {name: i for i, names in enumerate(LADDER) for name in names}
# What a paper's own files may import; its `jobs` and what they alone import may import all.
FOR_PAPERS = ("settings", "seams", "layers", "data", "registry", "papers/deit", "weights/names",
              "engine/teacher")
DEPTH = 7


@cache
def imports(file: str) -> frozenset[str]:
    """The files of the package that `file` imports when it is imported."""
    found = set()
    for node in _at_import(ast.parse((PACKAGE / f"{file}.py").read_text()).body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            base = "/".join(node.module.split(".")[1:])
            for alias in node.names:
                inside = f"{base}/{alias.name}".strip("/")
                found.add(inside if inside in FILES else base)
    return frozenset(found - {"", file})


def _at_import(body: list[ast.stmt]):
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        for part in "body", "orelse", "handlers", "finalbody":
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield from _at_import(getattr(node, part, []))


@cache
def depth(file: str) -> int:
    """Files in the longest chain of imports that begins with `file`; a circle would never end."""
    return 1 + max(map(depth, imports(file)), default=0)


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("papers/")])
def test_a_file_imports_its_own_step_and_those_below(file):
    here = STEP.get(file.split("/")[0], len(LADDER))
    for other in imports(file):
        there, own = other.split("/")[0], file.split("/")[0]
        assert there != "papers", f"{file} imports the paper {other}"
        assert STEP[there] < here or there == own, f"{file} imports {other}"
        assert not own == there == "jobs", f"the job {file} imports the job {other}"


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("papers/")])
def test_a_paper_imports_no_other_paper_and_little_of_the_engine(file):
    paper = file.rpartition("/")[0]
    importers = {other for other in FILES if file in imports(other)}
    of_jobs = file == f"{paper}/jobs" or importers and importers <= {f"{paper}/jobs"}
    for other in imports(file):
        if other.startswith("papers/"):
            assert other.startswith((f"{paper}/", "papers/deit/")), f"{file} imports {other}"
        elif not of_jobs:
            assert other.startswith(FOR_PAPERS), f"{file} imports {other}"
        assert not other.startswith("jobs/"), f"{file} imports the job {other}"


def test_chains_of_imports_are_short():
    deepest = max(FILES, key=depth)
    assert depth(deepest) <= DEPTH, f"{deepest} stands on a chain of {depth(deepest)} files"


def test_a_file_is_read_in_one_sitting():
    for file in FILES:
        text = (PACKAGE / f"{file}.py").read_text()
        assert len(text.splitlines()) <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{file}: {node.name}"
