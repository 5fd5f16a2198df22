"""The registry: papers and jobs are found by their files alone."""
import re
import sys

import pytest

from vit_efficient import papers, registry
from vit_efficient.settings.schema import find_job


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """Makes a paper of the given files on the package's path; it is forgotten afterwards."""
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path)])
    before = set(sys.modules)

    def make(name: str, **files: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        for stem, text in files.items():
            (tmp_path / name / f"{stem}.py").write_text(text)
    yield make
    for module in set(sys.modules) - before:
        if module.startswith("vit_efficient."):
            del sys.modules[module]


MODELS = """
def sixth(num_classes, image_size, dtype, *, width: int = 8):
    return width
VARIANTS = {"sixth": sixth}
"""
JOBS = """
from vit_efficient.papers.sixth_paper.topology import growth
LIMIT = 3
def search(config, workdir, *, steps: int = 500): ...
def measure(model, images): ...
def _growth(config, workdir): ...
class Search: ...
"""
TOPOLOGY = "def growth(config, workdir): ..."


def test_a_sixth_paper_edits_no_file(paper):
    assert "sixth" not in registry.variants("models")
    paper("sixth_paper", models=MODELS)
    paper("seventh_paper")
    assert registry.variants("models")["sixth"](10, 32, "float32", width=4) == 4
    assert {"sixth_paper", "seventh_paper"} <= set(registry.papers())


@pytest.mark.parametrize("file, name", [
    ("objective", "supervised"), ("sparsity", "dense"), ("phases", "constant")])
def test_the_engines_own_variants_stand_beside_those_of_papers(paper, file, name):
    paper("sixth_paper", **{file: "VARIANTS = {'sixth': print}"})
    assert {name, "sixth"} <= set(registry.variants(file))


def test_two_papers_with_one_name(paper):
    paper("sixth_paper", models=MODELS)
    paper("seventh_paper", models=MODELS)
    with pytest.raises(ValueError, match="sixth stands in .*seventh_paper.* and in .*sixth_paper"):
        registry.variants("models")


@pytest.mark.parametrize("text, said", [
    ("import no_such_module_at_all", "ModuleNotFoundError: .*no_such_module_at_all"),
    ("VARIANTS = {", "SyntaxError: "), ("x = 1 / 0", "ZeroDivisionError: division by zero$")])
def test_a_paper_that_cannot_be_imported_is_a_line_that_names_its_file(paper, tmp_path, text, said):
    paper("sixth_paper", models=text)
    file = re.escape(str(tmp_path / "sixth_paper" / "models.py"))
    with pytest.raises(ValueError, match=f"^{file}: cannot be imported, {said}") as info:
        registry.variants("models")
    assert "\n" not in str(info.value)


def test_jobs_of_a_paper_are_its_own_public_functions_of_config_and_workdir(paper):
    paper("sixth_paper", jobs=JOBS, topology=TOPOLOGY)
    assert registry.jobs("sixth_paper") == [*registry.jobs(""), "search"]
    assert find_job("search", "sixth_paper") is registry.paper_jobs("sixth_paper")["search"]
    for other in ("growth", "LIMIT", "measure", "_growth", "Search"):
        with pytest.raises(ValueError, match=f"--job={other}: no such job"):
            find_job(other, "sixth_paper")


def test_a_papers_job_takes_the_place_of_the_engines(paper):
    paper("sixth_paper", jobs="def export(config, workdir, *, out: str): ...")
    assert registry.jobs("sixth_paper") == registry.jobs("")
    assert registry.load_job("export", "sixth_paper") is not registry.load_job("export")
    assert registry.load_job("train", "sixth_paper") is registry.load_job("train")


def test_every_job_is_the_function_of_its_files_name():
    assert {"train", "evaluate", "export", "plan"} <= set(registry.jobs(""))
    for name in registry.jobs(""):
        assert registry.load_job(name).__name__ == name


@pytest.mark.parametrize("name", ["no_paper", "", "layers", "settings", "my-recipe", "a.b", ".."])
def test_a_recipe_need_not_have_a_paper(name):
    assert registry.paper_jobs(name) == {}
    assert registry.jobs(name) == registry.jobs("")


def test_an_unknown_job_names_the_nearest(paper):
    paper("sixth_paper", jobs=JOBS, topology=TOPOLOGY)
    with pytest.raises(ValueError, match=r"--job=serch: no such job, did you mean search\?"):
        find_job("serch", "sixth_paper")
