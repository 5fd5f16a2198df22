"""DVT's jobs on a run of two epochs: what they find, store and refuse, against NumPy."""
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_efficient
from vit_efficient import registry
from vit_efficient.engine import pretrained, start as starts, state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.jobs.train import train
from vit_efficient.papers.dvt import budget, calibration
from vit_efficient.papers.dvt.jobs import calibrate, check_thresholds, evaluate, export
from vit_efficient.weights import files

SMALL = {"epochs": 2.0, "model.width": 24, "model.depth": 1, "model.num_heads": 2,
         "model.scan": True, "optim.warmup_epochs": 0.0, "validation.every_epochs": 2.0,
         "checkpoint.every_epochs": 2.0, "loader.threads": 2}


def config(**changes):
    return vit_efficient.config("dvt:digits", SMALL | changes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run, calibrated on 600 training images."""
    folder = tmp_path_factory.mktemp("dvt") / "run"
    train(config(), folder)
    calibrate(config(), folder, images=600, budget=(0.001,))
    return folder


@pytest.fixture(scope="module")
def result(workdir):
    return json.loads((workdir / "calibration" / "budgets.json").read_text())


@pytest.fixture(scope="module")
def probabilities(workdir):
    """float64 [3, 359, 10] of the validation images, by the model alone, and their labels."""
    run = assemble(config())
    weights = states.weights(starts.weights(run, workdir, "best")[1])
    images = np.stack([run.augment.evaluate(run.data.val[i][0], 32) for i in range(359)])
    normal = run.augment.normalize({"image": jnp.asarray(images)})["image"]
    logits = np.float64(jax.jit(run.model.apply)({"params": weights["params"]}, normal))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True), np.array([run.data.val[i][1] for i in range(359)])


def stored(workdir, split: str) -> calibration.Answers:
    with np.load(workdir / "calibration" / f"{split}.npz") as file:
        return calibration.Answers(**{name: file[name] for name in calibration.Answers._fields})


def test_the_jobs_are_those_of_the_paper():
    for job in (calibrate, evaluate, export):
        assert registry.load_job(job.__name__, "dvt") is job


def test_every_images_answers_are_the_models(workdir, probabilities):
    p, labels = probabilities
    val, top = stored(workdir, "val"), np.sort(p, -1)[..., -2:]
    np.testing.assert_array_equal(val.places, range(359))
    np.testing.assert_array_equal(val.hits, p.argmax(-1) == labels)
    np.testing.assert_allclose(val.confidence, top[..., 1], atol=1e-5)
    np.testing.assert_allclose(val.margin, top[..., 1] - top[..., 0], atol=1e-5)
    np.testing.assert_allclose(val.entropy, (p * np.log(p)).sum(-1), atol=1e-5)
    train_set = stored(workdir, "train")
    assert train_set.hits.shape == (3, 600) and len(set(train_set.places)) == 600


def test_what_is_stored_follows_from_the_answers(workdir, result):
    rows = {kind: [row for row in result["rows"] if row["kind"] == kind]
            for kind in ("official", "solved", "budget")}
    assert [len(found) for found in rows.values()] == [59, 59, 1]
    solved, scored, flops = stored(workdir, "train"), stored(workdir, "val"), result["flops"]
    for p, row in enumerate(rows["official"], 1):
        expected = budget.official_thresholds(solved.confidence, budget.exit_shares(p))
        np.testing.assert_allclose(row["thresholds"], expected, rtol=1e-6)
    for row, best in zip(rows["official"], rows["solved"]):
        assert best["solved_cost"] <= row["solved_cost"] + 1e-9
        assert best["solved_top1"] >= row["solved_top1"]
    assert rows["budget"][0]["solved_cost"] <= 0.001
    for row in result["rows"]:
        mine = budget.outcome(scored.confidence, scored.hits, np.float32(row["thresholds"]), flops)
        assert row["scored_top1"] == pytest.approx(100 * mine.accuracy)
        assert row["scored_cost"] == pytest.approx(mine.cost)
        assert row["gap"] == pytest.approx(row["scored_top1"] - row["solved_top1"])
    assert result["anytime"] == pytest.approx((100 * scored.hits.mean(1)).tolist())
    assert sorted(path.name for path in (workdir / "calibration").iterdir()) == [
        "budgets.csv", "budgets.json", "budgets.png", "train.npz", "val.npz"]


def test_a_second_calibration_asks_no_model(workdir, result, monkeypatch, capsys):
    monkeypatch.setattr(calibration, "rows", None)
    again = calibrate(config(), workdir, images=600, budget=(0.0005, 0.0015), criterion="margin")
    assert [row["budget"] for row in again["rows"][-2:]] == [0.0005, 0.0015]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("flops : [") and lines[-2].startswith("anytime_classification : [")
    assert lines[-1].startswith("budgeted_batch_classification : [[")
    assert calibrate(config(), workdir, images=600, budget=(0.001,)) == result


def test_a_kill_costs_only_the_set_that_was_asked(workdir, tmp_path, monkeypatch):
    """Killed before the second set; then each set is computed once and the files are the same."""
    rows, asked = calibration.rows, []

    def counted(run, source, *rest, **options):
        asked.append(len(source))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return rows(run, source, *rest, **options)
    monkeypatch.setattr(calibration, "rows", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        calibrate(config(), workdir, images=600, budget=(0.001,), out=str(out))
    calibrate(config(), workdir, images=600, budget=(0.001,), out=str(out))
    assert asked == [359, 600, 600]
    for name in ("budgets.json", "budgets.csv", "train.npz"):
        assert (out / name).read_bytes() == (workdir / "calibration" / name).read_bytes()


def test_on_val_finds_on_one_half_and_scores_the_other(workdir, tmp_path):
    found = calibrate(config(), workdir, on="val", out=str(tmp_path))
    assert (found["solved_images"], found["scored_images"]) == (179, 180)
    assert not (tmp_path / "train.npz").exists()


def test_an_export_has_the_official_entries_and_gives_the_curve_back(workdir, result, tmp_path,
                                                                     capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "dvt.pth"
    export(config(), workdir, out=str(path))
    there = torch.load(path, weights_only=False)
    assert {"model_state_dict", "flops", "anytime_classification", "dynamic_threshold",
            "budgeted_batch_classification"} <= there.keys()
    thresholds = np.asarray(there["dynamic_threshold"])
    assert (thresholds.shape, thresholds.dtype) == ((59, 3), np.float32)
    official = [row for row in result["rows"] if row["kind"] == "official"]
    np.testing.assert_array_equal(thresholds, np.float32([row["thresholds"] for row in official]))
    given = config(**{"init_from": str(path)})
    held = evaluate(given, tmp_path / "none", mode="stored")
    assert [row["scored_top1"] for row in held["rows"]] == [row["scored_top1"] for row in official]
    again = evaluate(given, tmp_path / "none", mode="given")
    np.testing.assert_allclose([row["scored_top1"] for row in again["rows"]],
                               [row["scored_top1"] for row in official])
    assert "budgeted_batch_classification" in capsys.readouterr().out


def test_thresholds_of_other_weights_are_left_out(workdir, tmp_path, capsys):
    export(config(), workdir, out=str(tmp_path / "raw.pth"), kind="raw")
    assert "thresholds are of other weights" in capsys.readouterr().out
    assert set(pretrained.beside(tmp_path / "raw.pth")) == {"flops"}


def test_an_evaluation_lists_exits_and_given_thresholds(workdir, probabilities, capsys):
    found = evaluate(config(), workdir, thresholds=(0.3, 0.3, 0.0))
    p, labels = probabilities
    for k, row in enumerate(found["exits"]):
        assert row["top1"] == pytest.approx((p[k].argmax(-1) == labels).mean())
        assert row["grid"] == (2, 4, 8)[k]
    taken = np.where(p[0].max(-1) >= 0.3, 0, np.where(p[1].max(-1) >= 0.3, 1, 2))
    right = p.argmax(-1)[taken, range(359)] == labels
    assert found["rows"][0]["scored_top1"] == pytest.approx(100 * right.mean())
    out = capsys.readouterr().out
    assert "8x8" in out and "anytime_classification" in out


@pytest.mark.parametrize("call, said", [
    (lambda d: calibrate(config(), d, budget=(9.0,)), "--budget=9: .* from 0.0001.* to 0.00"),
    (lambda d: evaluate(config(), d, thresholds=(0.5, 0.0)), "--thresholds: 2 of them, .* 3 exits"),
    (lambda d: evaluate(config(), d, thresholds=(0.5, 0.5, 0.5)), "the last one is 0.5, it must"),
    (lambda d: evaluate(config(), d / "no", mode="stored"), "is not calibrated: --job=calibrate"),
    (lambda d: calibrate(vit_efficient.config("dvt:digits", {
        "model.name": "deit", "objective.name": "supervised"}), d), "has one exit"),
    (lambda d: evaluate(vit_efficient.config("dvt:digits", {
        "model.name": "deit", "objective.name": "supervised"}), d, mode="given"), "has one exit")])
def test_bad_input_is_refused(workdir, call, said):
    with pytest.raises(ValueError, match=said):
        call(workdir)


def test_thresholds_that_cannot_be(caplog):
    with pytest.raises(ValueError, match="x: a threshold is not a number"):
        check_thresholds("x", [0.5, float("nan"), 0], 3)
    caplog.set_level(logging.WARNING)
    check_thresholds("x", [[1.5, 0.5, -1e8]], 3)
    assert "no image can leave at the first exit" in caplog.text


def test_a_file_without_thresholds_is_told_its_keys(tmp_path):
    path = tmp_path / "bare.pth"
    files.write(path, {"a": np.zeros(1, np.float32)}, container="model_state_dict",
                extras={"flops": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="holds no dynamic_threshold .* it holds flops"):
        evaluate(config(**{"init_from": str(path)}), tmp_path / "none", mode="stored")
    other = tmp_path / "costs.pth"
    files.write(other, {"a": np.zeros(1, np.float32)}, container="model_state_dict",
                extras={"flops": [1.0, 3.0, 2.0], "dynamic_threshold": np.zeros((59, 3))})
    with pytest.raises(ValueError, match="flops = .* must increase"):
        evaluate(config(**{"init_from": str(other)}), tmp_path / "none", mode="stored")
