"""Configs of the toy engine: loaded, stored, and compared with the one that is there."""
import json

import pytest

from tests.settings.toys import problems
import vit_efficient
from vit_efficient.settings.store import check_same_run, load, load_stored, store

pytestmark = pytest.mark.usefixtures("engine")


def test_words_choose_the_recipe(recipe):
    config = load(f"{recipe}:digits,base")
    assert (config.recipe, config.epochs, config.data.source, config.model.name) == (
        "asvit:digits,base", 2.0, "digits", "toy_base")
    assert load(f"{recipe}:digits,arch=8,2,3|4,1").model.arch == "8,2,3|4,1"


def test_the_function_of_the_package_is_load(recipe):
    assert vit_efficient.config is load
    assert vit_efficient.config(f"{recipe}:digits", {"optim.lr": 1}).optim.lr == 1.0


def test_a_stored_config_comes_back_equal(recipe, tmp_path):
    config = load(f"{recipe}:digits", {"data.scale": "0.2,1", "search.out": "x"})
    store(config, tmp_path / "new" / "run")
    again = load_stored(tmp_path / "new" / "run")
    assert again.to_dict() == config.to_dict() and isinstance(again.data.scale, tuple)
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.json"]


def test_a_failed_store_leaves_the_old_one(recipe, tmp_path, monkeypatch):
    store(load(recipe), tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store(load(recipe, {"seed": 1}), tmp_path)
    assert load_stored(tmp_path).seed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asvit.py", "config.json"]


@pytest.mark.parametrize("text, said", [
    ("{", "no readable JSON"), ("[1]", "holds no config"),
    ('{"seed": 0, "old_key": 1}', "old_key = 1: no such key"),
    ('{"epochs": NaN}', "epochs = nan"), ("\xff", "no readable JSON")])
def test_a_stored_config_that_cannot_be_read(tmp_path, text, said):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with problems(str(tmp_path / "config.json"), said):
        load_stored(tmp_path)


def test_a_workdir_without_a_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json: give --config"):
        load_stored(tmp_path / "nowhere")


def test_an_older_config_gets_the_new_defaults(recipe, tmp_path):
    config = load(recipe).to_dict()
    del config["optim"]["b2"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_stored(tmp_path) == load(recipe)


def test_the_same_run_may_differ_only_in_what_changes_no_result(recipe, tmp_path):
    check_same_run(load(recipe), tmp_path)                    # nothing is stored
    store(load(recipe), tmp_path)
    check_same_run(load(f"{recipe}:small", {"log.every": 1}), tmp_path)
    other_run = load(recipe, {"optim.lr": 0.5, "model.name": "other", "log.every": 1})
    with problems(str(tmp_path / "config.json"), "\n  optim.lr = 0.001 there, 0.5 here",
                  "\n  model.width = 16 there, no such key here",
                  "\n  model.heads = no such key there, 2 here",
                  "new --workdir", "only loader, log, checkpoint, mesh, data.max_bad_records may "
                  "differ") as info:
        check_same_run(other_run, tmp_path)
    assert "log.every" not in str(info.value) and "epochs" not in str(info.value)


def test_overrides_of_a_stored_config(recipe, tmp_path):
    store(load(recipe), tmp_path)
    assert load_stored(tmp_path, {"log.every": "7"}).log.every == 7
    with problems("optim.lr = 0.001 there, 1.0 here"):
        check_same_run(load_stored(tmp_path, {"optim.lr": "1"}), tmp_path)
