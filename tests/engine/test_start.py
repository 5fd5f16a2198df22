"""What a run starts from, and its way into an official file and back."""
from functools import partial
from pathlib import Path
import shutil
import subprocess

import jax
import numpy as np
import pytest

from tests import runs
from vit_efficient.engine import pretrained, start
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.checkpoint import Checkpoints
from vit_efficient.jobs.evaluate import evaluate
from vit_efficient.jobs.export import export
from vit_efficient.settings.store import store
from vit_efficient.weights import files, interop
from vit_efficient.zoo import create_model

plain = partial(runs.small_config, runs.PLAIN)


def numbered(state, number: int):
    """The state with other weights, its averaged ones different again."""
    def shift(tree, by):
        return jax.tree.map(lambda x: x + by, tree)
    return state.replace(params=shift(state.params, 0.01 * number),
                         ema=shift(state.ema, -0.01 * number))


@pytest.fixture(scope="module")
def fresh():
    """The small run's state before the first step."""
    return assemble(plain()).fresh_state()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, fresh) -> Path:
    """A run of two steps, the first of them the better one; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = assemble(plain())
    store(run.config, folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, numbered(fresh, 1), {"top1": 0.5}, run.fingerprint())
        checkpoints.save(2, numbered(fresh, 2), {"top1": 0.25}, run.fingerprint())
    return folder


def variables_at(workdir: Path, step: int, kind: str) -> dict:
    return pretrained.stored(workdir, str(step), kind)[1]


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def read(path: Path) -> dict:
    return {k: np.asarray(v) for k, v in files.state_dict(files.read(path)).items()}


@pytest.mark.parametrize("flags, step, kind, suffix", [
    ({}, 1, "ema", ".pth"), ({"kind": "raw"}, 1, "raw", ".safetensors"),
    ({"weights": "latest"}, 2, "ema", ".safetensors"),
    ({"weights": "2", "kind": "raw"}, 2, "raw", ".pth")])
def test_export_writes_the_weights_that_were_asked_for(workdir, tmp_path, flags, step, kind,
                                                       suffix):
    config = plain()
    about = export(config, workdir, out=str(tmp_path / f"x{suffix}"), **flags)
    assert (about["step"], about["kind"]) == (step, kind)
    assert about["model"]["depth"] == config.model.depth and about["model"]["num_classes"] == 10
    model = assemble(config).model
    found = read(tmp_path / f"x{suffix}")
    assert list(found) == list(interop.layout(model))
    assert equal(interop.from_torch(model, found), variables_at(workdir, step, kind))


def test_an_export_needs_neither_the_data_nor_torch(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    moved = shutil.copytree(workdir, tmp_path / "moved")
    text = (moved / "config.json").read_text()
    (moved / "config.json").write_text(text.replace('"digits"', '"imagefolder"').replace(
        '"path": ""', '"path": "/nowhere"'))
    config = pretrained.load_stored(moved)
    assert config.data.path == "/nowhere"
    export(config, moved, out=str(tmp_path / "x.pth"))
    assert read(tmp_path / "x.pth")


def test_what_cannot_be_exported_is_refused_and_nothing_written(workdir, tmp_path):
    config = plain()
    for options, message in (({"out": "x.npz"}, "must end with"),
                             ({"weights": "7"}, "holds steps 1, 2"),
                             ({"weights": "bset"}, "holds steps 1, 2"),
                             ({"out": "no/x.pth"}, "no such folder")):
        out = str(tmp_path / options.pop("out", "x.pth"))
        with pytest.raises(ValueError, match=message):
            export(config, workdir, out=out, **options)
    with pytest.raises((ValueError, FileNotFoundError)):
        export(config, tmp_path / "empty", out=str(tmp_path / "x.pth"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("source", ["x.pth", "x.safetensors", ".", "checkpoints/1"])
def test_a_run_starts_from_a_file_a_run_or_a_step(workdir, tmp_path, source):
    if "." in source and source != ".":
        path = tmp_path / source
        export(plain(), workdir, out=str(path), weights="1")
    else:
        path = workdir / source
    run = assemble(plain(init_from=str(path)))
    assert equal(start.given(run, tmp_path / "new"), variables_at(workdir, 1, "ema"))


def test_given_weights_are_the_state_before_the_first_step(workdir, fresh, tmp_path):
    run = assemble(plain(init_from=str(workdir)))
    given = start.given(run, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        step, state = start.first_state(run, checkpoints, given)
    assert step == 0 and equal(state.params, given["params"])
    assert equal(state.ema["params"], given["params"])
    assert equal(state.opt_state, fresh.opt_state) and int(state.step) == 0
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, fresh)


def test_a_checkpoint_of_its_own_comes_before_init_from(workdir, tmp_path):
    run = assemble(plain(init_from=str(tmp_path / "nowhere.pth")))
    assert start.given(run, workdir) is None
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert start.first_state(run, checkpoints)[0] == 2


def test_kind_chooses_the_weights_of_a_run(workdir):
    model = assemble(plain()).model
    for kind in ("raw", "ema"):
        found = pretrained.given_weights(model, str(workdir / "checkpoints" / "2"), kind=kind)
        assert equal(found, variables_at(workdir, 2, kind))


def test_a_run_without_average_has_none_to_give(tmp_path):
    run = assemble(plain(step__ema_decay=0.0))
    store(run.config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, run.fresh_state(), None, run.fingerprint())
    assert pretrained.stored(tmp_path)[2]["kind"] == "raw"        # the latest: none was scored
    with pytest.raises(ValueError, match="has no averaged weights"):
        pretrained.stored(tmp_path, kind="ema")


def test_other_classes_and_image_sizes_are_adapted_on_request(workdir):
    model = assemble(plain()).model.clone(num_classes=4, image_size=64)
    with pytest.raises(ValueError, match=r"(?s)head.weight: shape .*pos_embed: shape"):
        pretrained.given_weights(model, str(workdir))
    found = pretrained.given_weights(model, str(workdir), adapt=("classes", "image_size"))["params"]
    old = variables_at(workdir, 1, "ema")["params"]
    assert found["pos_embed"].shape == (1, 1 + 64, 48)
    np.testing.assert_array_equal(found["pos_embed"][:, 0], old["pos_embed"][:, 0])
    np.testing.assert_allclose(found["pos_embed"][:, 1:].mean(1), old["pos_embed"][:, 1:].mean(1),
                               atol=1e-2)
    assert equal(found["blocks_0"], old["blocks_0"]) and found["head"]["bias"].shape == (4,)


def test_an_export_of_another_architecture_is_noticed(workdir, tmp_path, caplog):
    export(plain(), workdir, out=str(tmp_path / "x.safetensors"))
    other = plain(model__num_heads=4, model__drop_path=0.0)
    pretrained.given_weights(assemble(other).model, str(tmp_path / "x.safetensors"), 0, other.model)
    assert [record.message.partition(" was ")[2] for record in caplog.records] == [
        "made with model.num_heads = 3, this run has 4"]


def test_the_numbers_of_an_official_files_arguments_are_compared(tmp_path, caplog):
    options = dict(width=16, depth=1, num_heads=2, patch_size=8, granularity=0.25)
    model = create_model("scala", num_classes=3, image_size=16, **options)
    state_dict = {name: np.zeros(place.shape, np.float32)
                  for name, place in interop.layout(model).items()}
    args = {"granularity": 0.125, "smallest_ratio": 0.25, "width": "unknown", "depth": True}
    files.write(tmp_path / "x.pth", state_dict, container="model", extras={"args": args})
    pretrained.given_weights(model, str(tmp_path / "x.pth"), 0, options | {"smallest_ratio": 0.25})
    assert [record.getMessage().partition(" was ")[2] for record in caplog.records] == [
        "made with model.granularity = 0.125, this run has 0.25"]


def test_evaluation_scores_a_file_as_the_run_it_came_from(workdir, tmp_path, capsys):
    export(plain(), workdir, out=str(tmp_path / "x.pth"), weights="1", kind="raw")
    there = evaluate(plain(), workdir, weights="1")
    here = evaluate(plain(init_from=str(tmp_path / "x.pth")), tmp_path / "new")
    assert here == {name: there[name] for name in ("loss", "top1", "top5")}
    assert not (tmp_path / "new").exists()


def test_a_file_becomes_one_of_the_other_format(workdir, tmp_path):
    export(plain(), workdir, out=str(tmp_path / "x.pth"))
    export(plain(init_from=str(tmp_path / "x.pth")), tmp_path / "new",
           out=str(tmp_path / "x.safetensors"))
    a, b = read(tmp_path / "x.pth"), read(tmp_path / "x.safetensors")
    assert list(a) == list(b) and equal(a, b)


def test_by_the_real_command(workdir, tmp_path):
    def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
        return subprocess.run(runs.command(folder, *flags, config=runs.PLAIN), cwd=runs.ROOT,
                              text=True, check=False, capture_output=True, env=runs.environment())
    done = run(workdir, "--job=export", f"--out={tmp_path / 'x.pth'}", "--weights=latest")
    assert done.returncode == 0 and "weights of step 2" in done.stdout, done.stderr
    (tmp_path / "half.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:10_000])
    done = run(tmp_path / "new", f"--config.init_from={tmp_path / 'half.pth'}")
    assert done.returncode == 2 and "archive is damaged" in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: init_from = ")
    assert not (tmp_path / "new").exists()
