"""Scala's widths in an evaluation."""
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.objective import bind, supervised
from vit_efficient.phases import Phase
from vit_efficient.scala.models import scala
from vit_efficient.scala.objective import separate

MODEL = scala(5, 16, width=16, depth=1, num_heads=2, patch_size=8, granularity=0.25)


def test_every_width_is_scored_and_the_widest_learns():
    forward = bind(MODEL, Phase(), {})
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    params = MODEL.init(jax.random.key(0), images)["params"]
    fixed = {"collections": {}, "step": 0}
    made = separate(forward, Phase(), None, ratios=(0.5, 1.0))
    found = jax.jit(lambda *args: made.predictions(forward, *args))(params, fixed, images)
    assert list(found) == ["", "width0.5", "width1"] and made.needs == ("ratio",)
    for name, ratio in (("", 1.0), ("width0.5", 0.5), ("width1", 1.0)):
        expected = MODEL.apply({"params": params}, images, ratio=ratio)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)
    batch, key = {"image": images, "label": jnp.array([1, 4])}, jax.random.key(2)
    plain = supervised(forward, Phase(), None, label_smoothing=0.1)
    (loss, _), _ = made.gradients(params, fixed, batch, key)
    assert loss == plain.gradients(params, fixed, batch, key)[0][0]
