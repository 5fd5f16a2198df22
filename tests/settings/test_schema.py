"""Configs: words, overrides, checks, storage; with a toy engine whose groups stand in this file."""
from contextlib import contextmanager
from functools import partial
from inspect import signature
import json
from pathlib import Path
from types import ModuleType
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
import pytest

import vit_efficient
from vit_efficient import registry
from vit_efficient.settings import schema, words
from vit_efficient.settings.schema import flat, resolve
from vit_efficient.settings.store import check_same_run, load, load_stored, store
from vit_efficient.settings.values import Count, Positive, Rate
from vit_efficient.settings.words import find, read_words

RECIPE = """
from typing import Literal
from ml_collections import ConfigDict

def get_config(variant: Literal["small", "base"] = "small",
               data: Literal["imagenet", "digits"] = "imagenet", *,
               arch: str | None = None, folds: int = 1) -> ConfigDict:
    config = ConfigDict(dict(epochs=300, batch_size=1024, data=dict(source="tfds", scale=[0.08, 1]),
                             model=dict(name=f"toy_{variant}", drop_path=0.1), optim=dict(lr=1e-3)))
    if data == "digits":
        config.update(dict(epochs=2, data=dict(source="digits")))
    if arch:
        config.model.update(dict(name="toy", arch=arch))
    return config
"""


def open_data(split: str, *, source: Literal["tfds", "digits"], path: str = "",
              scale: tuple[float, float] = (0.5, 1.0)):
    ...


def make_optimizer(length: int, *, lr: Positive, b2: Rate = 0.999, warmup: Positive = 5,
                   clip_norm: Positive | None = None, nesterov: bool = False):
    ...


class Writer:
    def __init__(self, workdir: Path, *, every: Count = 50):
        ...


def toy(num_classes: int, image_size: int, dtype: str, *, arch: str, width: Count = 8,
        drop_path: Rate = 0.0):
    ...


def other(num_classes: int, image_size: int, dtype: str, *, drop_path: Rate = 0.0,
          heads: Count = 2):
    ...


def search(config, workdir, *, out: str, steps: Count = 500):
    ...


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """The groups of a toy engine, models of a toy paper `asvit` and its job `search`."""
    models, jobs = ModuleType("toy_models"), ModuleType("toy_jobs")
    models.VARIANTS = {"toy": toy, "other": other, "toy_base": partial(toy, arch="8,4", width=32),
                       "toy_small": partial(toy, image_size=32, arch="8,2", width=16)}
    groups = {"data": "open_data", "optim": "make_optimizer", "log": "Writer"}
    places = {group: f"{__name__}:{name}" for group, name in groups.items()}
    monkeypatch.setattr(schema, "GROUPS", places)
    monkeypatch.setattr(schema, "SEAMS", {**schema.SEAMS, "model": ("toy_models", None)})
    monkeypatch.setattr(search, "__module__", "toy_jobs")
    jobs.search = search
    toys = {"seams.toy_models": models, "papers.asvit.jobs": jobs}
    monkeypatch.setattr(registry, "_module", lambda name: toys.get(name) or real(name))


real = registry._module


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "asvit.py"
    path.write_text(RECIPE)
    return str(path)


@contextmanager
def problems(*texts: str):
    """Expects a ValueError that holds all of the texts."""
    with pytest.raises(ValueError) as info:
        yield info
    for text in texts:
        assert text in str(info.value)


# Loading

def test_every_default_is_filled_in_and_types_are_those_of_the_signatures(recipe):
    config = load(recipe)
    assert config.to_dict() == {
        "recipe": "asvit", "seed": 0, "epochs": 300.0, "batch_size": 1024, "dtype": "bfloat16",
        "init_from": "",
        "data": {"source": "tfds", "path": "", "scale": (0.08, 1.0)},
        "optim": {"lr": 1e-3, "b2": 0.999, "clip_norm": None, "warmup": 5.0, "nesterov": False},
        "log": {"every": 50},
        "model": {"name": "toy_small", "arch": "8,2", "width": 16, "drop_path": 0.1},
        "objective": {"name": "supervised", "label_smoothing": 0.0},
        "sparsity": {"name": "dense"}, "phases": {"name": "constant"}}
    for value in (config.epochs, config.optim.warmup, *config.data.scale):
        assert isinstance(value, float)


def test_a_config_is_locked_and_type_safe(recipe):
    config = load(recipe)
    with pytest.raises(AttributeError):
        config.optim.lrr = 1.0
    with pytest.raises(TypeError):
        config.optim.lr = "1"
    config.optim.clip_norm = 1.0                              # None may become what it stands for


def test_words_choose_the_recipe(recipe):
    config = load(f"{recipe}:digits,base")
    assert (config.recipe, config.epochs, config.data.source, config.model.name) == (
        "asvit:digits,base", 2.0, "digits", "toy_base")
    assert load(f"{recipe}:digits,arch=8,2,3|4,1").model.arch == "8,2,3|4,1"


def test_the_function_of_the_package_is_load(recipe):
    assert vit_efficient.config is load
    assert vit_efficient.config(f"{recipe}:digits", {"optim.lr": 1}).optim.lr == 1.0


def test_a_bare_name_is_looked_up_beside_the_package_and_then_inside(tmp_path, monkeypatch):
    beside, inside = tmp_path / "configs", tmp_path / "vit_efficient" / "configs"
    monkeypatch.setattr(words, "FOLDERS", (beside, inside))
    for folder in (beside, inside):
        folder.mkdir(parents=True)
    (inside / "asvit.py").write_text("")
    (inside / "_private.py").write_text("")
    assert find("asvit:digits,base") == (inside / "asvit.py", "digits,base")
    (beside / "asvit.py").write_text("")
    assert find("asvit") == (beside / "asvit.py", "")
    for name in ("asvitt", "asvitt:digits", "configs/asvit", "no/asvit.py", "asvit.py"):
        with pytest.raises(FileNotFoundError, match="no such config.*asvit"):
            find(name)
    with pytest.raises(ValueError, match="no words after the colon"):
        find("asvit:")


def test_a_path_with_another_colon(tmp_path):
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "asvit.py"
    path.write_text("")
    assert find(str(path)) == (path, "")
    assert find(f"{path}:digits,arch=x.py") == (path, "digits,arch=x.py")


@pytest.mark.parametrize("text, said", [
    ("def get_config(:", "line 1: SyntaxError"),
    ("\n\nimport no_such_module", "line 3: ModuleNotFoundError"),
    ("def get_config():\n    return lr", "line 2: NameError: name 'lr' is not defined"),
    ("x = 1", "has no function get_config"),
    ("def get_config(*, path: str): ...", "TypeError: get_config() missing"),
    ("def get_config():\n    raise ValueError('not yet')", "asvit.py: not yet"),
    ("def get_config():\n    return None", "must return a ConfigDict, not None")])
def test_a_broken_file_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "asvit.py").write_text(text)
    with problems(str(tmp_path / "asvit.py"), said):
        load(str(tmp_path / "asvit.py"))


# Words

def get_config(variant: Literal["small", "base"] = "small",
               data: Literal["imagenet", "digits"] = "imagenet",
               schedule: Literal["off", "p18", "p37"] = "p37",
               coarse: Literal["off", "on"] = "off", *,
               arch: str | None = None, folder: str = "", folds: Count = 1, half: bool = False):
    ...


PLAIN = st.text(st.characters(exclude_characters=",="), min_size=1)


@given(st.fixed_dictionaries({}, optional={
    "variant": st.sampled_from(["small", "base"]), "data": st.sampled_from(["imagenet", "digits"]),
    "schedule": st.sampled_from(["p18", "p37"]), "folder": PLAIN, "folds": st.integers(1),
    "half": st.booleans()}), st.lists(st.integers(0, 99), max_size=8), st.randoms())
def test_words_and_settings_in_any_order_and_a_list_last(arguments, arch, random):
    pieces = [value if name in ("variant", "data", "schedule") and random.random() < 0.5 else
              f"{name}={value}" for name, value in arguments.items()]
    random.shuffle(pieces)
    if arch:
        pieces.append("arch=" + ",".join(map(str, arch)))
        arguments = arguments | {"arch": ",".join(map(str, arch))}
    assert read_words(",".join(pieces), get_config) == arguments


@given(st.text(st.sampled_from("smalbde,=pof378|/ ")) | st.text())
def test_any_words_are_read_or_refused(words):
    try:
        arguments = read_words(words, get_config)
    except ValueError:
        return
    assert set(arguments) <= set(signature(get_config).parameters)


@pytest.mark.parametrize("words, said", [
    ("smal", "no such word 'smal', did you mean small? allowed: arch=, base,"),
    ("xyz", "allowed: arch=, base, digits"),
    ("small,base", "base: variant is given twice, as small and base"),
    ("variant=small,base", "given twice"),
    ("small,small", "given twice"), ("arch=1,arch=2", "given twice"),
    ("off", "write schedule=off or coarse=off"),
    ("variant=bass", "variant=bass: must be one of small, base, did you mean base?"),
    ("folds=0", "folds=0: must be a whole number at least 1"),
    ("half=yes", "must be true or false"),
    ("arch=", "the value is empty"), ("small,,base", "no such word ''"),
    (",small", "no such word ''"), ("=", "no such word"),
    ("arhc=8,2", "did you mean arch=?"), ("folder=/data,digit", "did you mean digits?"),
    ("folder=/data,dat=digits", "'dat="),
    ("arch=8,2,3|4,1,digits", "holds a comma, so it comes last; put digits before it")])
def test_wrong_words(words, said):
    with problems(said):
        read_words(words, get_config)


# Overrides and checks

@pytest.mark.parametrize("key, value, expected", [
    ("optim.lr", "1e-2", 0.01), ("optim.b2", "0.95", 0.95), ("optim.clip_norm", "1", 1.0),
    ("optim.clip_norm", "None", None),
    ("optim.nesterov", "true", True), ("data.scale", "0.2,1", (0.2, 1.0)),
    ("data.scale", "(0.2, 1)", (0.2, 1.0)),
    ("data.scale", [0.2, 1], (0.2, 1.0)), ("optim.lr", 1, 1.0), ("seed", "7", 7),
    ("data.path", "a,b=c", "a,b=c"),
    ("model.arch", "4,2|1", "4,2|1"), ("objective.label_smoothing", "0.1", 0.1),
    ("search.steps", "5", 5)])
def test_overrides(recipe, key, value, expected):
    assert flat(load(recipe, {key: value}))[key] == expected


@pytest.mark.parametrize("key, value, said", [
    ("optim.lrr", "1", "optim.lrr = 1: no such key, did you mean optim.lr? (optim has lr, b2,"),
    ("lr", "1", "did you mean optim.lr?"), ("optm.lr", "1", "did you mean optim.lr?"),
    ("xyz.abc", "1", "there are recipe, seed"),
    ("optim", "1", "it is a group (optim has lr, b2,"),
    ("optim.lr.x", "1", "did you mean optim.lr?"),
    ("optim.", "1", "no such key"), ("", "1", "no such key"),
    ("optim.lr", "-1", "optim.lr = -1: must be a finite number above 0"),
    ("optim.lr", "nan", "optim.lr = nan: must be"),
    ("optim.lr", "fast", "optim.lr = fast: must be"),
    ("optim.lr", True, "optim.lr = True: must be"), ("optim.lr", "", "optim.lr = : must be"),
    ("optim.nesterov", "1", "true or false"),
    ("optim.nesterov", 1, "true or false"), ("seed", "1.5", "whole number"),
    ("seed", 1.0, "whole number"),
    ("data.scale", "0.2", "a tuple of 2"), ("data.scale", "0.2,1,2", "a tuple of 2"),
    ("data.scale", "0.2,x", "a tuple of 2"),
    ("data.source", "digit", "must be one of tfds, digits, did you mean digits?"),
    ("dtype", "float16", "did you mean bfloat16?"),
    ("model.name", "toy_smal", "did you mean toy_small?"),
    ("model.name", ["toy"], "model.name = ['toy']: must be one of"),
    ("model.heads", "2", "no such key"), ("epochs", "0", "above 0"),
    ("search.stepz", "1", "did you mean search.steps?")])
def test_wrong_overrides(recipe, key, value, said):
    with problems(recipe, said):
        load(recipe, {key: value})


def test_everything_wrong_is_listed_once(recipe):
    with problems("\n  optim.lrr = 1: ", "\n  epochs = -1: ", "\n  model.name = toi: ") as info:
        load(recipe, {"optim.lrr": "1", "epochs": "-1", "model.name": "toi", "model.width": "1"})
    assert str(info.value).count("\n") == 3                   # which keys `model` has is not known
    with problems("epochs = x: ") as info:
        load(recipe, {"epochs": "x"})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("change, said", [
    (dict(optim=dict(lr=1e-3, betta=1)), "optim.betta = 1: no such key"),
    (dict(optm=dict(lr=1.0)), "optm.lr = 1.0: no such key"),
    (dict(optm={}), "optm = {}: no such key"),
    (dict(optim=dict(lr="1e-3")), "optim.lr = '1e-3': must be"),
    (dict(optim={}), "optim.lr is missing: must be a finite number above 0"),
    (dict(optim=3), "it is a group"),
    (dict(seed=dict(a=1)), "seed.a = 1: no such key"),
    (dict(data=dict(source="tfds", path=dict(a=1))), "must be a text"),
    (dict(model={}), "model.name is missing: must be one of other, toy"),
    (dict(model=dict(name="toy")), "model.arch is missing"),
    (dict(model=dict(name="toy_base", heads=2)), "model.heads = 2: no such key (model has name"),
    (dict(search=dict(stepz=3)), "search.stepz = 3: no such key, did you mean search.steps?"),
    (dict(benchmarc=dict(rounds=3)), "no such key")])
def test_mistakes_in_the_file(recipe, change, said):
    right = dict(recipe="asvit", epochs=1, batch_size=8, data=dict(source="tfds"),
                 model=dict(name="toy_small"), optim=dict(lr=1))
    resolve(right)
    with problems("config:", said):
        resolve(right | change)


def test_another_door_keeps_what_it_shares_and_drops_the_rest(recipe):
    model = load(recipe, {"model.name": "other"}).model
    assert model.to_dict() == {"name": "other", "drop_path": 0.1, "heads": 2}
    assert load(recipe, {"model.name": "toy_base"}).model.arch == "8,4"
    resolved = load(recipe).to_dict()
    assert resolve(resolved, {"model.name": "toy_base"}).model.width == 32
    assert resolve(resolved, {"model.name": "toy_base", "model.width": 4}).model.width == 4
    with problems("model.arch = 8,2: no such key"):
        load(recipe, {"model.name": "other", "model.arch": "8,2"})
    resolved["model"]["widht"] = 3                            # no key of the former variant either
    with problems("model.widht = 3: no such key"):
        resolve(resolved, {"model.name": "other"})


def test_the_group_of_a_job_is_checked_and_may_lack_what_a_flag_will_say(recipe):
    config = resolve({**load(recipe).to_dict(), "search": {"steps": 3}})
    assert config.search.to_dict() == {"steps": 3}


# Storing

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


def test_references_in_a_file_are_resolved():
    config = ConfigDict(dict(epochs=1, batch_size=8, data=dict(source="tfds"),
                             model=dict(name="toy_small")))
    config.optim = dict(lr=config.get_ref("epochs") * 0.5)
    assert resolve(config).optim.lr == 0.5


def test_flat_keeps_an_empty_group_that_nobody_knows():
    assert flat({"a": {"b": 1}, "optim": {}, "c": {}}) == {"a.b": 1, "c": {}}
