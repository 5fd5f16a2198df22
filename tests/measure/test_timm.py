"""The comparison with timm: its arithmetic, what it says where something is missing, and timm
itself where torch and timm are installed."""
import importlib.util
import sys

from ml_collections import ConfigDict
import pytest

from vit_efficient.measure import timm as against

CONFIG = ConfigDict(dict(model=dict(name="deit_tiny_patch16_224"), batch_size=2, dtype="float32",
                         optim=dict(clip_norm=1.0), step=dict(ema_decay=0.9)))


def test_ratios_are_of_the_same_round(monkeypatch):
    ours = {"train": iter([4.0, 6.0, 8.0]), "forward": iter([1.0, 1.0, 1.0])}
    theirs = {"train": iter([8.0, 8.0, 8.0]), "forward": iter([4.0, 2.0, 1.0])}
    calls = []
    monkeypatch.setattr(against, "_timed", lambda run, steps: (0.0, next(run)))

    def call(self, way, kind, steps):
        if way == "compile":
            raise RuntimeError("timm: no compiler")
        calls.append((kind, steps))
        return 0.0, next(theirs[kind])
    timm = type("Fake", (), {"__call__": call, "versions": {"timm": "1"}})()
    result = against.compare(timm, ours, rounds=3, steps=2)
    assert calls == [("train", 2), ("forward", 2)] * 3
    assert result["train / timm eager"] == dict(ratio=0.75, least=0.5, largest=1.0, seconds=3.0,
                                                timm_seconds=4.0)
    assert result["forward / timm eager"]["ratio"] == 0.5
    assert result["failed"] == {"compile": "timm: no compiler"} and result["clock"] == "processor"


def test_an_untimed_step_comes_first():
    done = []
    against._timed(done.append, 3)
    assert done == [1, 3]


def test_what_is_missing_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: find(name, *rest)
                        if name not in ("torch", "timm") else None)
    with pytest.raises(ValueError, match="--against=timm needs torch and timm installed"):
        against.Timm(CONFIG, 10, 224)


def test_the_stand_in_has_every_module_and_name(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, against._Absent()])
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("torchvision.transforms.functional")
    assert module.InterpolationMode.NEAREST is not None and issubclass(module.Resize, object)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nothing_of_this_name")


@pytest.mark.slow
@pytest.mark.skipif(None in map(importlib.util.find_spec, ("torch", "timm")),
                    reason="torch and timm are not installed")
def test_timm_itself():
    timm = against.Timm(CONFIG, 10, 224)
    try:
        for kind in against.KINDS:
            assert all(seconds > 0 for seconds in timm("eager", kind, 1))
        with pytest.raises(RuntimeError, match="timm: KeyError"):
            timm("no way", "train", 1)
    finally:
        timm.close()
