"""Scala's widths in an evaluation."""
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.objective import supervised
from vit_efficient.phases import Phase
from vit_efficient.scala.objective import separate

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)


def forward(params, fixed, images, key, ratio=1.0):
    """A net whose logits grow with its width."""
    return params["scale"] * ratio * LOGITS, fixed["collections"]


def test_every_width_is_scored_and_the_last_one_counts():
    made = separate(forward, Phase(), None, ratios=(0.5, 1.0))
    found = made.predictions(forward, {"scale": 1.0}, {"collections": {}}, None)
    assert list(found) == ["", "width0.5", "width1"] and made.needs == ("ratio",)
    for name, ratio in (("", 1), ("width0.5", 0.5), ("width1", 1)):
        np.testing.assert_array_equal(found[name], ratio * LOGITS)


def test_the_widest_net_alone_learns():
    batch = {"image": jnp.zeros((2, 1, 1, 3)), "label": jnp.array([1, 3])}
    arguments = {"scale": 1.0}, {"collections": {}}, batch, jax.random.key(0)
    (loss, _), grads = separate(forward, Phase(), None, label_smoothing=0.2).gradients(*arguments)
    plain = supervised(forward, Phase(), None, label_smoothing=0.2).gradients(*arguments)
    assert loss == plain[0][0] and grads == plain[1]
