"""Distillation losses against the authors' numbers and closed forms."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.papers.deit import objective
from vit_efficient.seams.phases import Phase

with np.load(Path(__file__).parents[2] / "golden/sret/kd_loss.npz") as _arrays:
    GOLDEN = dict(_arrays)
CASES = json.loads(str(GOLDEN["config"]))["cases"]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_authors(case):
    rng, i, temperature = np.random.RandomState(case["seed"]), case["case"], case["temperature"]
    scale, shape = case["scale"], case["shape"]
    student, teacher = (np.float32(scale * rng.standard_normal(shape)) for _ in "st")
    loss, grad = jax.value_and_grad(objective.soft_label_loss)(student, teacher, temperature)
    np.testing.assert_allclose(loss, GOLDEN[f"loss_{i}"], rtol=1e-6)
    np.testing.assert_allclose(grad, GOLDEN[f"grad_student_{i}"], atol=1e-7)


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 5)).astype(np.float32)


def test_tempered_divergence_is_the_written_out_sum():
    student, teacher, tau = logits(0), logits(1), 3.0
    p, q = (np.exp(x / tau) / np.exp(x / tau).sum(-1, keepdims=True) for x in (teacher, student))
    expected = tau ** 2 / 20 * (p * (np.log(p) - np.log(q))).sum()
    got = objective.tempered_divergence(student, teacher, tau)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distilled_weighs_labels_and_teacher(kind):
    """Labels for the first output, weight 1 - alpha; the teacher for the second, weight alpha."""
    heads, signal = (logits(0), logits(1)), logits(2)
    forward = lambda params, fixed, images, key: ((params["a"], params["b"]), {})
    teacher = lambda params, fixed, images, key: (params, {})
    made = objective.distilled(forward, Phase(), teacher, kind=kind, alpha=0.3, temperature=2.0)
    batch = {"image": jnp.zeros((4, 1)), "label": jnp.array([0, 1, 2, 3])}
    fixed = {"collections": {}, "teacher": {"params": signal, "collections": {}}}
    (loss, aux), grads = made.gradients(dict(zip("ab", heads)), fixed, batch, None)
    log_p = heads[0] - np.log(np.exp(heads[0]).sum(-1, keepdims=True))
    target = 0.9 * np.eye(5)[:4] + 0.1 / 5
    term = (objective.hard_label_loss(heads[1], signal) if kind == "hard"
            else objective.tempered_divergence(heads[1], signal, 2.0))
    np.testing.assert_allclose(loss, -0.7 * (target * log_p).sum(-1).mean() + 0.3 * term, rtol=1e-5)
    assert all(np.abs(grads[name]).sum() > 0 for name in "ab")


@pytest.mark.parametrize("name", ["soft_labels", "distilled"])
def test_a_missing_teacher_names_the_key(name):
    made = objective.VARIANTS[name](None, Phase(), None)
    assert f"{name}: needs a teacher, set teacher.workdir" in made.missing
    assert not objective.VARIANTS[name](None, Phase(), lambda: None).missing
