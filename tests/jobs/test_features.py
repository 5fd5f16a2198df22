"""Features of every training image: what the model says, once, also after a kill."""
import json
import os

import jax
import numpy as np
import pytest

import vit_efficient
from vit_efficient import disk
from vit_efficient.data.stored import Stored
from vit_efficient.engine.assemble import assemble
from vit_efficient.jobs import features as job
from vit_efficient.jobs.features import features
from vit_efficient.weights import files, interop

SMALL = {"model.width": 16, "model.depth": 1, "model.num_heads": 2, "objective.name": "separate",
         "phases.name": "constant", "batch_size": 128}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Weights in a file, far from the start, no run."""
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    model = assemble(vit_efficient.config("scala:digits", SMALL)).model
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32),
                             interop.shapes(model))
    files.write(path, interop.to_torch(model, variables))
    return vit_efficient.config("scala:digits", SMALL | {"init_from": str(path)})


def expected(config, examples):
    """Features of these training images, one pass of the model over all."""
    run = assemble(config)
    images = np.stack([run.augment.evaluate(run.data.train[i][0], 32) for i in examples])
    variables = interop.from_torch(run.model, files.state_dict(files.read(config.init_from)))
    return jax.jit(lambda images: run.model.apply(
        variables, run.augment.normalize({"image": images})["image"], method="features"))(images)


def test_the_rows_are_what_the_model_says(config, tmp_path):
    for kind in ("class", "tokens", "logits"):
        about = features(config, tmp_path, out=str(tmp_path / kind), kind=kind)
        stored, examples = Stored(tmp_path / kind), [0, 1, 200, 1437]
        assert len(stored) == 1438 and stored.about == json.loads(json.dumps(about))
        found = expected(config, examples)
        slow = {"class": found["tokens"][:, 0], "tokens": found["tokens"],
                "logits": found["logits"]}[kind]
        np.testing.assert_allclose(np.stack([stored[i] for i in examples]), slow, atol=3e-3)
        stored.check_source(assemble(config).data.train)
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == [
            "features.json", "features.npy"]


def test_the_same_command_goes_on_after_a_kill(config, tmp_path, monkeypatch):
    features(config, tmp_path, out=str(tmp_path / "whole"))
    write, first = disk.write_json, []

    def killed(path, record):
        write(path, record)
        if record.get("done") == 4 * 128:
            raise KeyboardInterrupt
    monkeypatch.setattr(job, "SAVED_BATCHES", 2)
    monkeypatch.setattr(disk, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        features(config, tmp_path, out=str(tmp_path / "parts"))
    with pytest.raises(ValueError, match="cannot be read"):
        Stored(tmp_path / "parts")
    monkeypatch.setattr(disk, "write_json", write)
    rows = job.rows
    monkeypatch.setattr(job, "rows", lambda run, source, program: (
        first.append(source.indices[0]), rows(run, source, program))[1])
    features(config, tmp_path, out=str(tmp_path / "parts"))
    features(config, tmp_path, out=str(tmp_path / "parts"))         # is there
    assert first == [4 * 128]
    np.testing.assert_array_equal(*(np.load(tmp_path / name / "features.npy")
                                    for name in ("whole", "parts")))


@pytest.mark.parametrize("name", ["unfinished.json", "features.json"])
@pytest.mark.parametrize("written", [False, True])
def test_a_kill_at_the_first_or_the_last_file_is_made_good(config, tmp_path, monkeypatch, name,
                                                           written):
    replace = os.replace

    def killed(source, target):
        if target.name == name:
            if written:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        features(config, tmp_path, out=str(tmp_path / "x"))
    monkeypatch.setattr(os, "replace", replace)
    features(config, tmp_path, out=str(tmp_path / "x"))
    assert sorted(os.listdir(tmp_path / "x")) == ["features.json", "features.npy"]
    Stored(tmp_path / "x").check_source(assemble(config).data.train)
    assert np.load(tmp_path / "x" / "features.npy").any(1).all()


def test_another_folder_is_left_alone(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="must be a new or an empty folder"):
        features(config, tmp_path, out=str(tmp_path / "mine"))
    about = {"format": 1, "kind": "logits"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "features.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="holds features of other kind and crop and labels"):
        features(config, tmp_path, out=str(tmp_path / "other"))
