"""Scores count every example exactly once, whatever the batch size and the padding."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.runs import small_config
from vit_efficient.engine import state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.scores import scores
from vit_efficient.engine.validation import Validation, table
from vit_efficient.seams.phases import Phase


def test_scores_are_sums_over_the_images_of_weight_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 10)).astype(np.float32)
    logits[6:] = [[np.inf], [np.nan]]                    # padding may hold anything
    label = rng.integers(0, 10, 8)
    got = scores(jnp.asarray(logits), {"label": label, "weight": np.float32([1] * 6 + [0] * 2)})
    logits = logits[:6]
    order = np.argsort(-logits, axis=1)
    loss = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    expected = {"top1": (order[:, 0] == label[:6]).sum(),
                "top5": (order[:, :5] == label[:6, None]).any(1).sum(),
                "loss": loss[np.arange(6), label[:6]].sum()}
    for name, (total, count) in got.items():
        np.testing.assert_allclose(total, expected[name], rtol=1e-6)
        assert count == 6


@pytest.fixture(scope="module")
def run():
    return assemble(small_config(step__ema_decay=0.5, phases__schedule="off"))


@pytest.fixture(scope="module")
def fields(run):
    """Raw and averaged weights that differ."""
    raw = states.weight_fields(run.fresh_state())
    ema = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), raw["ema"])
    return raw | {"ema": ema}


@pytest.mark.parametrize("size", [64, 359, 1000])
def test_any_batch_size_scores_every_example_once(run, fields, size):
    program = jax.jit(lambda weights, images: run.model.apply(
        {"params": weights["params"]}, run.augment.normalize({"image": images})["image"]))
    images = np.stack([run.augment.evaluate(run.data.val[i][0], 32) for i in range(359)])
    label = np.array([run.data.val[i][1] for i in range(359)])
    got = Validation(run, "val", batch_size=size)(fields, 0)
    for kind, suffix in ("raw", ""), ("ema", "_ema"):
        logits = program(states.weights(fields, kind), images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        np.testing.assert_allclose(got[f"loss{suffix}"], loss, rtol=1e-5)
        assert got[f"top1{suffix}"] == pytest.approx((logits.argmax(1) == label).mean())
    assert abs(got["loss"] - got["loss_ema"]) > 1e-3


def test_a_coarse_phase_is_scored_at_its_own_setting_too(fields):
    coarse = Phase(model=(("stride", 16), ("dilation", 5)))
    run = assemble(small_config(step__ema_decay=0.5))
    validation = Validation(run, "val")
    assert list(validation.settings(coarse)) == ["", "_stride16"]
    assert list(validation.settings(run.phases.phase_at(43))) == [""]
    fine, own = (run.scoring(phase) for phase in validation.settings(coarse).values())
    batch = {"image": np.zeros((8, 32, 32, 3), np.uint8), "label": np.zeros(8, np.int32),
             "weight": np.ones(8, np.float32)}
    losses = [float(program(states.weights(fields, "raw"), jnp.int32(0), batch)[""]["loss"][0])
              for program in (fine, own)]
    assert losses[0] != losses[1]


def test_evaluation_is_due_every_so_many_epochs_and_at_the_end(run):
    validation = Validation(run, "val", every_epochs=0.75)
    assert [step for step in range(1, 45) if validation.due(step)] == [16, 32, 44]


def test_the_table_begins_with_top1():
    lines = table({"loss": 0.5, "top5_ema": 0.999, "top1": 0.98607, "top1_stride16_ema": 0.5})
    assert lines.splitlines()[:2] == ["top-1 98.6 %", "top-1 stride16 ema 50.0 %"]
    assert "loss 0.5000" in lines and "top-5 ema 99.9 %" in lines
