"""Every width evaluated, one of them exported: by the real jobs on a small run."""
import csv
from functools import partial
import importlib.util
import json
import sys

import jax
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

import vit_efficient
from vit_efficient import registry
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.overview import overview
from vit_efficient.engine.pretrained import given_weights
from vit_efficient.jobs.train import train, work_before
from vit_efficient.main import main
from vit_efficient.measure import timm as against
from vit_efficient.measure.macs import multiply_adds
from vit_efficient.papers.scala import timing
from vit_efficient.papers.scala.jobs import benchmark, evaluate, export
from vit_efficient.papers.scala.models import predictor
from vit_efficient.weights import files, interop
from vit_efficient.zoo import create_model

# Of one block and four patches; its sizes once more, for models beside the run's.
SIZES = dict(num_classes=10, image_size=32, width=32, depth=1, num_heads=2, patch_size=16)
SMALL = {"epochs": 3.0, "model.width": 32, "model.depth": 1, "model.num_heads": 2,
         "model.patch_size": 16, "phases.full_epochs": 1.0, "optim.warmup_epochs": 0.0,
         "validation.every_epochs": 3.0}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of three epochs, of which the first trains the full net alone."""
    folder = tmp_path_factory.mktemp("scala") / "run"
    scores = train(vit_efficient.config("scala:digits", SMALL), folder)
    assert {f"top1_width{ratio:g}" for ratio in (0.25, 0.5, 0.75, 1.0)} <= scores.keys()
    return folder


@pytest.fixture(scope="module")
def config():
    return vit_efficient.config("scala:digits", SMALL)


def test_the_paper_has_its_own_jobs():
    assert registry.load_job("evaluate", "scala") is evaluate
    assert registry.load_job("export", "scala") is export
    assert registry.load_job("benchmark", "scala") is benchmark
    assert registry.load_job("evaluate", "deit") is not evaluate
    assert registry.jobs("scala") == registry.jobs("")


def test_every_width_is_a_row(workdir, config, capsys):
    rows = evaluate(config, workdir, rounds=1)
    assert [row["ratio"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert all(row["trained"] and 0 <= row["top1"] <= row["top5"] <= 1 for row in rows)
    assert [row["channels"] for row in rows] == [8, 16, 24, 32]
    model = create_model("scala", **SIZES, granularity=0.25)
    assert [row["macs"] for row in rows] == [sum(model.macs(ratio=r).values())
                                             for r in model.ratios]
    assert "never trained" not in capsys.readouterr().out
    with open(workdir / "widths.csv", encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    assert [float(row["top1"]) for row in stored] == [row["top1"] for row in rows]
    assert (workdir / "widths.png").stat().st_size > 10_000


def test_a_width_that_was_not_trained_is_marked_and_another_one_refused(workdir, config, tmp_path,
                                                                        capsys):
    rows = evaluate(config, workdir, ratios=(0.625, 1.0), rounds=1, out=str(tmp_path / "x.csv"))
    assert [row["trained"] for row in rows] == [False, True]
    assert "0.625*" in capsys.readouterr().out and (tmp_path / "x.png").exists()
    with pytest.raises(ValueError, match="multiples of 1/16; the nearest is 0.3125"):
        evaluate(config, workdir, ratios=(0.3,), rounds=1)


def test_a_model_that_was_trained_at_one_width_says_so(workdir, tmp_path):
    config = vit_efficient.config("scala:digits", SMALL | {"objective.name": "separate"})
    rows = evaluate(config, workdir, ratios=(0.5, 1.0), rounds=1, out=str(tmp_path / "x.csv"))
    assert [row["trained"] for row in rows] == [False, True]


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a_width_is_exported_as_a_deit(workdir, config, tmp_path, ratio, capsys):
    """Its logits, as a DeiT with the ordinary scale, are those of the full model at that width."""
    path = tmp_path / "narrow.safetensors"
    about = export(config, workdir, out=str(path), ratio=ratio)
    width = round(32 * ratio)
    assert about["timm"] == {"embed_dim": width, "num_heads": 2, "layer_norm_eps": 1e-5}
    assert float(capsys.readouterr().out.split("within ")[1].split()[0]) < 1e-5
    model = create_model("scala", **SIZES, granularity=0.25)
    net = create_model("deit", **SIZES | {"width": width}).clone(epsilon=1e-5)
    narrow = interop.from_torch(net, files.state_dict(files.read(path)))
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    predict = predictor(model, given_weights(model, str(workdir)))
    np.testing.assert_allclose(jax.nn.softmax(jax.jit(net.apply)(narrow, images)),
                               predict(images, ratio=ratio), atol=1e-5)
    assert not np.allclose(predict(images), predict(images, ratio=ratio), atol=1e-3)
    with pytest.raises(ValueError, match="the widths are 0.25, 0.5, 0.75, 1;"):
        predict(images, ratio=0.6)


def test_an_untrained_width_is_exported_only_by_force(workdir, config, tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(ValueError, match="--ratio=0.625: never trained, the widths are 0.25, 0.5"):
        export(config, workdir, out=str(path), ratio=0.625)
    assert not path.exists()
    export(config, workdir, out=str(path), ratio=0.625, force=True)
    assert path.exists()


SLIM = {"asvit": {"model.arch": "4,2,2|2,1,1|2,1,1|3,1,1|8,8"},
        "sret": {"model.base_dims": (8, 8), "model.heads": (1, 2), "model.depth": (2, 2),
                 "model.recursive_num": (1, 1), "model.groups1": (4, 1), "model.groups2": (2, 1)}}


@pytest.mark.parametrize("name", SLIM)
def test_another_papers_model_is_evaluated_and_exported_at_each_width(name, tmp_path, capsys):
    """Random weights, given as an official file; a narrow file makes the narrow model."""
    config = vit_efficient.config("scala:digits", {
        "model.name": name, "init_from": str(tmp_path / "all.pth"), **SLIM[name]})
    model = create_model(**config.model, num_classes=10, image_size=32)
    rng = np.random.default_rng(0)
    files.write(tmp_path / "all.pth", interop.to_torch(model, jax.tree.map(
        lambda x: np.float32(rng.uniform(-0.3, 0.5, x.shape)) ** 2, interop.shapes(model))),
        container="model", about={}, extras={})
    rows = evaluate(config, tmp_path / "run", ratios=(0.25, 1.0), rounds=1,
                    out=str(tmp_path / "x.csv"))
    assert [(row["ratio"], row["channels"]) for row in rows] == [(0.25, 2), (1.0, 8)]
    assert [row["macs"] for row in rows] == [sum(model.macs(ratio=r).values()) for r in (0.25, 1)]
    assert "GMACs" in (text := capsys.readouterr().out) and "GFLOPs" not in text
    about = export(config, tmp_path / "run", out=str(tmp_path / "half.pth"), ratio=0.5)
    assert float(capsys.readouterr().out.split("within ")[1].split()[0]) < 1e-5
    net = create_model(**about["model"])
    assert net.widths[0] == 4 and net.heads == model.heads
    narrow = given_weights(net, str(tmp_path / "half.pth"))
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    predict = predictor(model, given_weights(model, str(tmp_path / "all.pth")))
    np.testing.assert_allclose(jax.nn.softmax(jax.jit(net.apply)(narrow, images)),
                               predict(images, ratio=0.5), atol=1e-5)


def test_a_step_of_the_run_costs_its_four_nets(config):
    """The three passes of a step, but for the first layer's, as they are traced."""
    run = assemble(config)
    warm, phase = run.phases.distinct()
    assert run.macs(warm) == sum(run.model.macs().values())
    expected = sum(sum(run.model.macs(ratio=ratio).values()) for ratio in run.model.ratios)
    assert run.macs(phase) == expected
    stems = sum(run.model.macs(ratio=ratio)["patch_embed"] for ratio in run.model.ratios)
    counted = multiply_adds(run.traced_step(phase).jaxpr) / config.batch_size
    assert counted == pytest.approx(3 * expected - stems, rel=0.02)
    assert f"{expected / 1e6:,.1f} M (100.0 %)" in overview(run)
    steps = np.diff(work_before(run))
    assert (steps[0], steps[-1]) == (run.macs(warm), run.macs(phase))


@pytest.fixture
def VisionTransformer(monkeypatch):
    """timm's, which imports torchvision and does not need it."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, against._Absent()])
    yield pytest.importorskip("timm.models.vision_transformer").VisionTransformer
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        if isinstance(sys.modules[name], against._Anything):
            del sys.modules[name]


def test_timm_has_the_logits_of_an_exported_width(VisionTransformer, workdir, config, tmp_path):
    """timm's own model with the sizes that stand in the file, loaded strictly."""
    import torch
    about = export(config, workdir, out=str(tmp_path / "half.pth"), ratio=0.5)
    tree = torch.load(tmp_path / "half.pth", weights_only=True)
    sizes, shape = about["timm"], about["model"]
    theirs = VisionTransformer(
        img_size=shape["image_size"], patch_size=shape["patch_size"], depth=shape["depth"],
        num_classes=shape["num_classes"], embed_dim=sizes["embed_dim"],
        num_heads=sizes["num_heads"],
        norm_layer=partial(torch.nn.LayerNorm, eps=sizes["layer_norm_eps"])).eval()
    theirs.load_state_dict(tree["model"], strict=True)
    model = create_model(**config.model, num_classes=10, image_size=32)
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    with torch.inference_mode():
        found = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    expected = jax.jit(partial(model.apply, ratio=0.5))(given_weights(model, str(workdir)), images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_whole_model_is_exported_in_the_official_layout(workdir, config, tmp_path):
    path = tmp_path / "whole.pth"
    export(config, workdir, out=str(path))
    model = create_model("scala", **SIZES, granularity=0.25)
    jax.tree.map(np.testing.assert_array_equal, given_weights(model, str(path)),
                 given_weights(model, str(workdir)))


def test_the_benchmark_compares_the_widths_and_the_nets_of_a_step(tmp_path, capsys):
    config = vit_efficient.config("scala:digits", SMALL | {
        "model.smallest_ratio": 0.5, "objective.ratios": None})
    result = benchmark(config, tmp_path / "run", rounds=1, steps=1, input_batches=1,
                       out=str(tmp_path / "speed.json"))
    assert list(result["widths"]) == ["0.5", "0.75", "1"]
    shares = [row["relative_macs"] for row in result["widths"].values()]
    assert shares == sorted(shares) and shares[-1] == result["widths"]["1"]["relative_time"] == 1
    nets = result["nets"]
    assert nets["least"] == nets["ratio"] == nets["largest"]        # of one round
    assert np.isclose(nets["ratio"], nets["seconds"] / nets["deit_seconds"])
    assert "of plain DeiTs' of the same widths" in capsys.readouterr().out
    assert json.loads((tmp_path / "speed.json").read_text())["nets"] == nets


def test_times_are_of_the_rounds_after_the_first():
    clock, calls = iter(range(100)), []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.in_turns(programs, rounds=2, steps=3, clock=lambda: next(clock))
    assert seconds == {"a": [1 / 3, 1 / 3], "b": [1 / 3, 1 / 3]}
    assert "".join(calls) == "ab" + 2 * "aaabbb"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of one to five pictures of the digit that is their class: 16 of each for training."""
    folder, digits = tmp_path_factory.mktemp("clips"), load_digits()
    for name in "01":
        pictures = iter(digits.images[digits.target == int(name)])
        for i in range(28):
            place = folder / ("train" if i < 16 else "val") / name / f"clip{i}"
            place.mkdir(parents=True)
            for frame in range(1 + i % 5):
                pixels = np.uint8(np.rint(next(pictures) * 255 / 16))
                Image.fromarray(pixels).save(place / f"{frame}.png")
    return folder


def probing(run, clips, workdir, *flags: str) -> list[str]:
    """A command line that probes what lies in the folder `run` on clips."""
    changed = {key: value for key, value in SMALL.items() if key.startswith("model.")} | {
        "epochs": 20.0, "batch_size": 8, "optim.lr": 0.02, "optim.weight_decay": 0.1,
        "validation.every_epochs": 20.0, "data.source": "clips", "data.path": clips,
        "data.frames": 3}
    return [f"--config=scala:digits,probe={run}", f"--workdir={workdir}",
            *(f"--config.{key}={value}" for key, value in changed.items()), *flags]


def test_a_probe_on_clips_learns_and_leaves_the_rest_as_it_was(workdir, clips, tmp_path, capsys):
    folder = tmp_path / "probe"
    assert main(probing(workdir, clips, folder)) == 0
    model = create_model("scala", **SIZES | {"num_classes": 2}, granularity=0.25)
    before = given_weights(model, str(workdir), adapt=("heads",))["params"]
    after = given_weights(model, str(folder))["params"]
    assert not np.array_equal(before.pop("head")["kernel"], after.pop("head")["kernel"])
    jax.tree.map(np.testing.assert_array_equal, before, after)
    capsys.readouterr()
    assert main([f"--workdir={folder}", "--job=evaluate", "--rounds=1"]) == 0
    text = capsys.readouterr().out
    assert "24 images of val" in text and "never trained" not in text
    with open(folder / "widths.csv", encoding="utf-8") as table:
        scores = {row["ratio"]: float(row["top1"]) for row in csv.DictReader(table)}
    assert scores.keys() == {"0.25", "0.5", "0.75", "1.0"}
    assert min(scores.values()) > 0.6 and scores["1.0"] > 0.8, scores


def test_a_model_of_one_width_is_probed_by_the_same_recipe(workdir, clips, tmp_path, capsys):
    """The weights of a Scala are those of a DeiT."""
    folder = tmp_path / "probe"
    assert main(probing(workdir, clips, folder, "--config.model.name=deit")) == 0
    assert main([f"--workdir={folder}", "--job=evaluate"]) == 0
    score = float(capsys.readouterr().out.split("top-1 ")[-1].split()[0])
    assert score > 80
    assert main([f"--workdir={folder}", "--job=evaluate", "--ratios=0.5"]) == 2
    assert "model.name = deit has one width" in capsys.readouterr().err


@pytest.mark.parametrize("flag, message", [
    ("--config.optim.trained=()", "set optim.trained = ('head*',)"),
    ("--config.data.frames=None", "data.frames = None: data.source = clips needs it"),
    ("--config.init_from=/nowhere", "init_from = /nowhere")])
def test_a_probe_that_cannot_be_is_one_error(workdir, clips, tmp_path, capsys, flag, message):
    command = [word for word in probing(workdir, clips, tmp_path / "x")
               if word.partition("=")[0] != flag.partition("=")[0]]
    assert main([*command, flag]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_probe_has_no_teacher(capsys):
    assert main(["--config=scala:probe=x,teacher=y"]) == 2
    assert "probe= and teacher=: a probe has no teacher" in capsys.readouterr().err
