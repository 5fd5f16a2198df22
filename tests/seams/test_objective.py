"""Supervised loss, labels and hits, against slow obvious forms."""
from hypothesis import given, strategies as st
import jax.numpy as jnp
import numpy as np

from vit_efficient.seams import objective
from vit_efficient.seams.phases import Phase


def forward(params, fixed, images, key):
    return params["logits"], {}


def gradients(logits, label, smoothing):
    made = objective.supervised(forward, Phase(), None, label_smoothing=smoothing)
    params, batch = {"logits": jnp.asarray(logits)}, {"image": None, "label": label}
    return made.gradients(params, {"collections": {}}, batch, None)


@given(st.floats(0, 0.9), st.integers(0, 99))
def test_smoothed_cross_entropy_and_its_gradient(smoothing, seed):
    rng = np.random.default_rng(seed)
    logits, label = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    (loss, aux), grads = gradients(logits, jnp.asarray(label), smoothing)
    target = np.full((6, 5), smoothing / 5)
    target[np.arange(6), label] += 1 - smoothing
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(loss, -(target * np.log(p)).sum(-1).mean(), rtol=2e-5)
    np.testing.assert_allclose(grads["logits"], (p - target) / 6, atol=2e-6)
    assert aux.metrics["top1"][0] == (logits.argmax(-1) == label).sum()


@given(st.floats(0, 0.9), st.floats(0, 1))
def test_smoothing_after_mixing_is_mixing_after_smoothing(smoothing, share):
    first, second = (jnp.array([[3, 1, 0]]) == jnp.arange(4)[:, None]).T, jnp.eye(4)[:3]
    mixed = share * first + (1 - share) * second
    smooth = lambda one_hot: one_hot * (1 - smoothing) + smoothing / 4      # DeiT's order
    expected = share * smooth(first) + (1 - share) * smooth(second)
    np.testing.assert_allclose(objective.soft_targets(mixed, 4, smoothing), expected, atol=1e-6)


def test_a_mixed_label_counts_as_its_likeliest():
    label = jnp.array([[0.6, 0.4, 0], [0.7, 0.3, 0], [0, 0, 1]])
    logits = np.eye(3, dtype=np.float32)
    (loss, aux), _ = gradients(logits, label, 0.0)
    logp = logits - np.log(np.e + 2)
    np.testing.assert_allclose(loss, -(np.asarray(label) * logp).sum(-1).mean(), rtol=1e-6)
    assert aux.metrics["top1"] == (2, 3)


@given(st.integers(0, 99), st.integers(1, 5))
def test_hits_are_the_k_largest(seed, k):
    rng = np.random.default_rng(seed)
    logits, label = rng.permutation(40).reshape(8, 5).astype(np.float32), rng.integers(0, 5, 8)
    expected = [label[i] in np.argsort(-logits[i])[:k] for i in range(8)]
    assert objective.hits(jnp.asarray(logits), jnp.asarray(label), k).tolist() == expected


def test_constant_and_undefined_logits_score_nothing():
    label = jnp.array([0, 1])
    assert not objective.hits(jnp.zeros((2, 3)), label).any()
    assert not objective.hits(jnp.full((2, 3), jnp.nan), label).any()
    assert not objective.hits(jnp.array([[jnp.nan, 0.0, 0.0], [0.0, jnp.nan, 0.0]]), label).any()
