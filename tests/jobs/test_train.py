"""Training as a user meets it: what it learns, what it leaves, how it goes on after a kill."""
from dataclasses import replace
import json
import os
from pathlib import Path
import random
import signal
import time

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import runs
from vit_efficient.data.loader import train_batches
from vit_efficient.engine import metrics, sharding
from vit_efficient.engine.assemble import assemble
from vit_efficient.jobs.evaluate import evaluate
from vit_efficient.jobs.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(workdir, scores) of a finished small run on 8 devices."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return workdir, train(runs.small_config(), workdir)


def test_a_run_leaves_everything_that_it_promises(trained, capsys):
    workdir, scores = trained
    assert list(runs.losses(workdir)) == list(range(1, 45))
    assert {p.name for p in (workdir / "checkpoints").iterdir()} >= {"33", "44"}
    assert json.loads((workdir / "config.json").read_text())["recipe"] == "asvit:digits"
    assert (workdir / "curves.png").stat().st_size > 10_000
    records = metrics.read(workdir / "metrics.jsonl")
    assert {r["phase"] for r in records if "phase" in r} == {0, 1}
    assert all(r["peak_memory_bytes"] > 1e8 for r in records if "loss" in r)
    assert sum("compile_seconds" in r for r in records) == 2
    assert records[-1]["val/top1"] == scores["top1"]
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("loss")) == 44


def test_it_learns(trained):
    losses = runs.losses(trained[0])
    early, late = (np.mean([losses[s] for s in steps]) for steps in (range(1, 6), range(40, 45)))
    assert late < early - 0.1 and trained[1]["top1"] > 0.2


def test_a_finished_run_says_its_scores_again_and_changes_nothing(trained):
    workdir, scores = trained
    before = (workdir / "metrics.jsonl").read_text(), runs.final_state(workdir)
    assert train(runs.small_config(), workdir) == scores
    assert ((workdir / "metrics.jsonl").read_text(), runs.final_state(workdir)) == before


def test_evaluation_of_the_checkpoint_repeats_the_scores(trained, capsys):
    workdir, scores = trained
    config = runs.small_config(validation__batch_size=37)        # padded: 359 = 9 * 37 + 26
    again = evaluate(config, workdir, weights="latest")
    assert again == pytest.approx(scores, rel=1e-5)
    assert f"top-1 {100 * scores['top1']:.1f} %" in capsys.readouterr().out
    assert evaluate(config, workdir, split="train", weights="44")["top1"] > 0.2
    with pytest.raises(ValueError, match="checkpoint 7: .* holds steps"):
        evaluate(config, workdir, weights="7")


def test_another_config_in_the_same_folder_is_refused(trained):
    with pytest.raises(ValueError, match="optim.lr = 0.002 there, 0.5 here"):
        train(runs.small_config(optim__lr=0.5), trained[0])


def test_numbers_that_are_not_finite_end_the_run_with_the_last_checkpoint(tmp_path):
    config = runs.small_config(runs.PLAIN, optim__lr=1e30, step__stop_after_skips=3)
    with pytest.raises(FloatingPointError, match="3 steps in a row up to step .* last checkpoint"):
        train(config, tmp_path / "run")


def test_a_profile_is_written_on_request(tmp_path):
    config = runs.small_config(runs.PLAIN, epochs=0.2, log__profile_at=2)
    train(config, tmp_path / "run")                      # the 4 steps end inside the profile
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))


def test_a_teacher_is_used_and_remembered(trained, tmp_path):
    words = dict(teacher__workdir=str(trained[0]), objective__name="soft_labels", epochs=0.1,
                 checkpoint__every_epochs=0)
    config = runs.small_config(runs.PLAIN, **words)
    train(config, tmp_path / "run")
    manifest = next((tmp_path / "run/checkpoints").iterdir()) / "manifest/metadata"
    assert json.loads(manifest.read_text())["extra"]["teacher"]
    other = runs.small_config(runs.PLAIN, **words | dict(teacher__weights="33"))
    (tmp_path / "run/config.json").unlink()
    with pytest.raises(ValueError, match="teacher.workdir = .*: it is not the teacher that"):
        train(other, tmp_path / "run")


@pytest.mark.parametrize("config", [
    runs.small_config(phases__schedule="off"),
    runs.small_config(runs.PLAIN, model__width=96, model__depth=2)], ids=["asvit", "deit"])
def test_one_and_eight_devices_train_alike(config):
    """Losses of three real steps, data- and fsdp-sharded, equal to 1e-5 (float32)."""
    def three_steps(mesh):
        run = replace(assemble(config), mesh=mesh)
        state, phase = run.fresh_state(), run.phases.phase_at(0)
        step, losses = run.step(phase), []
        with train_batches(run.data, run.augment.train, run.phases, config.batch_size,
                           sharding.batch_sharding(mesh), 0, 0) as batches:
            for _ in range(3):
                state, out = step(state, run.frozen(), next(batches))
                losses.append(float(out["metrics"]["loss"][0]))
        return losses

    one = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1],
                        axis_types=sharding.make_mesh().axis_types)
    expected = three_steps(one)
    for mesh in sharding.make_mesh(), sharding.make_mesh(data=2, fsdp=4):
        np.testing.assert_allclose(three_steps(mesh), expected, rtol=1e-5)


def lives(workdir: Path, kills: int, seed: int, config: dict, ahead: int) -> list[dict[int, float]]:
    """Runs the real command, kills it `kills` times at a random moment, at once or up to `ahead`
    steps later, then lets it finish; the losses in the metrics file after each kill."""
    rng, seen = random.Random(seed), []
    for _ in range(kills):
        goal = len(runs.losses(workdir)) + rng.randrange(ahead)
        process = runs.start(workdir, config=config)
        while process.poll() is None and len(runs.losses(workdir)) < goal:
            time.sleep(0.05)
        time.sleep(rng.random())
        process.kill()
        process.wait()
        seen.append(runs.losses(workdir))
    assert runs.start(workdir, config=config).wait() == 0, Path(f"{workdir}.log").read_text()
    return [*seen, runs.losses(workdir)]


def compare_lives(folder: Path, kills: int, seed: int, config: dict, ahead: int) -> int:
    """Mismatches of losses and final state between a killed run and one left alone."""
    alone, killed = folder / "alone", folder / "killed"
    lives(alone, 0, seed, config, ahead)
    expected, seen = runs.losses(alone), lives(killed, kills, seed, config, ahead)
    wrong = sum(expected[step] != loss for losses in seen for step, loss in losses.items())
    wrong += seen[-1].keys() != expected.keys()
    states = runs.final_state(alone), runs.final_state(killed)
    print(f"{kills} kills after steps {[max(losses, default=0) for losses in seen[:-1]]}: {wrong} "
          f"losses of {sum(map(len, seen))} and "
          f"{sum(states[0][name] != states[1].get(name) for name in states[0])} of "
          f"{len(states[0])} leaves of the final state differ")
    return wrong + (states[0] != states[1])


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_bits(tmp_path, request):
    """`--kills=20` does it as often and with the real digits config, shortened to 15 epochs."""
    kills = request.config.getoption("--kills")
    many = {"epochs": 15.0, "checkpoint.every_epochs": 0.5, "log.every": 1}
    config, ahead = (many, 30) if kills > 2 else (runs.SMALL, 40)
    assert compare_lives(tmp_path, kills, 0, config, ahead) == 0


@pytest.mark.slow
def test_sigterm_saves_and_ends(tmp_path):
    workdir = tmp_path / "run"
    config = runs.PLAIN | {"checkpoint.every_epochs": 0.0, "checkpoint.every_minutes": 0.0,
                           "epochs": 100.0}
    process = runs.start(workdir, config=config, forked=False)
    while len(runs.losses(workdir)) < 3 and process.poll() is None:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143, Path(f"{workdir}.log").read_text()
    last = max(runs.losses(workdir))
    assert (workdir / f"checkpoints/{last}").is_dir()
