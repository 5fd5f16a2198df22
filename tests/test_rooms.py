"""Rooms: a paper's folder is found by its files alone."""
import sys

import pytest

import vit_efficient
from vit_efficient import rooms


@pytest.fixture
def room(tmp_path, monkeypatch):
    """Makes a room of the given files on the package's path; it is forgotten afterwards."""
    monkeypatch.setattr(vit_efficient, "__path__", [*vit_efficient.__path__, str(tmp_path)])
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
from vit_efficient.sixth_paper.topology import growth
LIMIT = 3
def search(config, workdir, *, steps: int = 500): ...
def measure(model, images): ...
def _growth(config, workdir): ...
class Search: ...
"""
TOPOLOGY = "def growth(config, workdir): ..."


def test_a_sixth_room_edits_no_file(room):
    assert "sixth" not in rooms.doors("models")
    room("sixth_paper", models=MODELS)
    room("seventh_paper")
    assert rooms.doors("models")["sixth"](10, 32, "float32", width=4) == 4
    assert rooms.door("models", "sixth") is rooms.doors("models")["sixth"]


@pytest.mark.parametrize("file, name", [
    ("objective", "supervised"), ("sparsity", "dense"), ("phases", "constant")])
def test_the_engines_own_doors_stand_beside_those_of_rooms(room, file, name):
    room("sixth_paper", **{file: "VARIANTS = {'sixth': print}"})
    assert {name, "sixth"} <= set(rooms.doors(file))


def test_two_rooms_with_one_name(room):
    room("sixth_paper", models=MODELS)
    room("seventh_paper", models=MODELS)
    with pytest.raises(ValueError, match="sixth stands in .*seventh_paper.* and in .*sixth_paper"):
        rooms.doors("models")


def test_a_mistake_in_a_room_is_not_taken_for_a_missing_file(room):
    room("sixth_paper", models="import no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        rooms.doors("models")


def test_an_unknown_door_names_the_nearest():
    with pytest.raises(ValueError, match=r"objective.name = supervisd: did you mean supervised\?"):
        rooms.door("objective", "supervisd")


def test_jobs_of_a_room_are_its_own_public_functions_of_config_and_workdir(room):
    room("sixth_paper", jobs=JOBS, topology=TOPOLOGY)
    assert rooms.job_names("sixth_paper") == [*rooms.JOBS, "search"]
    assert rooms.job("search", "sixth_paper") is rooms.jobs("sixth_paper").search
    for other in ("growth", "LIMIT", "measure", "_growth", "Search"):
        with pytest.raises(ValueError, match=f"--job={other}: no such job"):
            rooms.job(other, "sixth_paper")


@pytest.mark.parametrize("name", ["no_room", "", "layers", "limits", "my-recipe", "a.b", ".."])
def test_a_recipe_need_not_have_a_room(name):
    assert rooms.jobs(name) is None
    assert rooms.job_names(name) == list(rooms.JOBS)


def test_an_unknown_job_names_the_nearest(room):
    room("sixth_paper", jobs=JOBS, topology=TOPOLOGY)
    with pytest.raises(ValueError, match=r"--job=serch: no such job, did you mean search\?"):
        rooms.job("serch", "sixth_paper")
