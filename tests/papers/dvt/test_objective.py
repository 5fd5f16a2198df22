"""DVT's objective: what it adds up, and what an evaluation scores."""
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.papers.dvt.objective import exits
from vit_efficient.seams.phases import Phase

LABELS = jnp.array([2, 0, 1])
LOGITS = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)     # exit, image, class


def forward(params, fixed, images, key, **knobs):
    return tuple(params["scale"] * exit for exit in jnp.asarray(LOGITS)), fixed["collections"]


def test_the_exits_add_up_with_equal_weights():
    made = exits(forward, Phase(), None, label_smoothing=0.1)
    batch = {"image": jnp.zeros((3, 1, 1, 3)), "label": LABELS}
    (loss, aux), grads = made.gradients({"scale": 1.0}, {"collections": {}}, batch,
                                        jax.random.key(0))
    target = np.full((3, 4), 0.025)
    target[np.arange(3), LABELS] += 0.9
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    expected = sum(-(target * np.log(p)).sum(-1).mean() for p in probabilities)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["scale"], sum(
        ((p - target) * logits).sum(-1).mean() for p, logits in zip(probabilities, LOGITS)),
        rtol=1e-5)
    for k, (logits, p) in enumerate(zip(LOGITS, probabilities), 1):
        assert aux.metrics[f"top1_exit{k}"] == ((logits.argmax(-1) == LABELS).sum(), 3)
        own = -(target * np.log(p)).sum(-1).mean()
        np.testing.assert_allclose(aux.metrics[f"loss_exit{k}"], (own, 1.0), rtol=1e-6)
    assert aux.metrics["top1"] == aux.metrics["top1_exit3"]


def test_every_exit_is_scored_and_the_last_one_counts():
    made = exits(forward, Phase(), None)
    found = made.predictions(forward, {"scale": 1.0}, {"collections": {}}, None)
    assert list(found) == ["", "exit1", "exit2", "exit3"]
    np.testing.assert_array_equal(found[""], LOGITS[2])
    np.testing.assert_array_equal(found["exit1"], LOGITS[0])
    assert made.needs == ("exit",)
