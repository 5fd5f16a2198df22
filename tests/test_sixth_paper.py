"""The made-up paper of vit_efficient/README.md, as it stands there: no file of ours is edited."""
from pathlib import Path
import re
import shutil
import sys

import jax
import numpy as np
import pytest

from tests.runs import ROOT, SMALL
import vit_efficient
from vit_efficient import papers, registry
from vit_efficient.engine import metrics
from vit_efficient.engine.assemble import assemble
from vit_efficient.jobs.train import train
from vit_efficient.main import main

PAGE = (ROOT / "vit_efficient" / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"\*\*\d\. `(?P<file>[\w/]+\.py)`\*\*\n\n```python\n(?P<code>.*?)```", re.S)
BRIEF = {"epochs": 4.0, "phases.merged_epochs": 2.0, "optim.warmup_epochs": 0.0, "log.every": 1,
         "optim.lr": 3e-3, "model.depth": 1, "model.width": 32, "validation.every_epochs": 4.0}


@pytest.fixture(autouse=True, scope="module")
def recipe(tmp_path_factory):
    """The recipe of the paper, whose files are written from the page's blocks and found by name;
    all is forgotten afterwards."""
    folder = tmp_path_factory.mktemp("sixth")
    blocks = {match["file"]: match["code"] for match in BLOCK.finditer(PAGE)}
    assert set(blocks) == {"configs/mini.py", *(f"papers/mini/{name}.py" for name in (
        "models", "objective", "sparsity", "phases", "jobs"))}
    for file, code in (blocks | {"papers/mini/__init__.py": ""}).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(code)
    papers.__path__.append(str(folder / "papers"))
    yield str(folder / "configs" / "mini.py")
    papers.__path__.remove(str(folder / "papers"))
    for module in [name for name in sys.modules if ".papers.mini" in name]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """(workdir, records) of four epochs on digits."""
    workdir = tmp_path_factory.mktemp("run")
    scores = train(vit_efficient.config(f"{recipe}:digits", BRIEF), workdir)
    assert scores["top1"] > 0.18                        # after 88 steps of a block of 32 channels
    return workdir, metrics.read(workdir / "metrics.jsonl")


def test_all_four_variants_and_the_job_are_found():
    for file in ("models", "objective", "sparsity", "phases"):
        module = sys.modules["vit_efficient.papers.mini." + file] if registry.variants(file) else 0
        assert module.VARIANTS.items() <= registry.variants(file).items()
    assert "costs" in registry.jobs("mini") and "costs" not in registry.jobs("asvit")


def test_it_learns_in_four_phases_while_its_masks_move(run):
    _, records = run
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 88 and np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.15
    assert {record["phase"] for record in records if "phase" in record} == {0, 1, 2, 3}
    # From all weights down to half, linearly up to three quarters of 88 steps, every epoch.
    found = [(record["step"], record["density"]) for record in records if "density" in record]
    assert found == [(step, pytest.approx(1 - 0.5 * min(step / 66, 1), abs=1e-3))
                     for step in (22, 44, 66, 88)]


def test_its_masks_move_under_the_phases_of_as_vit():
    """Compiled as a training run compiles them: a stride each, with and without an update."""
    config = vit_efficient.config("asvit:digits", SMALL | {
        "sparsity.name": "pruned", "sparsity.every_epochs": 0.5, "epochs": 2.0})
    made = assemble(config)
    seen = {(dict(phase.model)["stride"], phase.topology) for phase in made.phases.distinct()}
    assert seen == {(16, False), (16, True), (4, False), (4, True)}
    state, phase = made.fresh_state(), made.phases.phase_at(10)
    assert phase.topology and dict(phase.model)["stride"] == 16
    batch = next(iter_batches := made.batches(10))
    iter_batches.close()
    before = jax.device_get(state.masks)
    state, out = made.step(phase)(state, made.frozen(), batch)
    total, count = jax.device_get(out["metrics"]["density"])
    kept = jax.tree.leaves(jax.tree.map(lambda mask: int(mask.sum()), jax.device_get(state.masks)))
    assert sum(kept) == total < count == sum(mask.size for mask in jax.tree.leaves(before))
    zeros = jax.tree.map(lambda mask, weight: None if mask is None else bool(
        (np.asarray(weight)[~np.asarray(mask)] == 0).all()), state.masks, state.params,
        is_leaf=lambda leaf: leaf is None)
    assert all(jax.tree.leaves(zeros))


def test_its_job_runs_and_its_flags_are_checked(recipe, capsys):
    assert main([f"--config={recipe}", "--job=costs", "--merges=1,2,7"]) == 0
    assert re.findall(r"merge (\d): ([\d,]+) multiply-adds", capsys.readouterr().out)[0][0] == "1"
    assert main([f"--config={recipe}", "--job=costs", "--merge=1"]) == 2
    assert main(["--help", f"--config={recipe}"]) == 0
    assert "costs" in capsys.readouterr().out


def test_its_errors_name_key_value_and_what_is_allowed(recipe):
    for overrides, said in (
            ({"model.num_heads": 3}, "model.num_heads = 3: must divide model.width"),
            ({"phases.merge": 3}, "phases.merge = 3: must divide the grid"),
            ({"sparsity.density": 1.5}, "sparsity.density = 1.5: must be .* at most 1"),
            ({"sparsity.densty": 0.5}, "sparsity.densty.*did you mean sparsity.density")):
        with pytest.raises(ValueError, match=said):
            assemble(vit_efficient.config(f"{recipe}:digits", overrides))


def test_a_run_resumes_to_the_same_bits(recipe, run, tmp_path):
    """From the state after the third epoch, in another folder."""
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "88")
    train(vit_efficient.config(f"{recipe}:digits", BRIEF), tmp_path / "again")
    manifests = [(Path(folder) / "checkpoints" / "88" / "manifest" / "metadata").read_text()
                 for folder in (workdir, tmp_path / "again")]
    assert manifests[0] == manifests[1]
