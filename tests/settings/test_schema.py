"""Configs of the toy engine: defaults, overrides, and what is wrong in them."""
from ml_collections import ConfigDict
import pytest

from tests.settings.toys import problems
from vit_efficient.settings.schema import flat, resolve
from vit_efficient.settings.store import load

pytestmark = pytest.mark.usefixtures("engine")


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


def test_references_in_a_file_are_resolved():
    config = ConfigDict(dict(epochs=1, batch_size=8, data=dict(source="tfds"),
                             model=dict(name="toy_small")))
    config.optim = dict(lr=config.get_ref("epochs") * 0.5)
    assert resolve(config).optim.lr == 0.5


def test_flat_keeps_an_empty_group_that_nobody_knows():
    assert flat({"a": {"b": 1}, "optim": {}, "c": {}}) == {"a.b": 1, "c": {}}
