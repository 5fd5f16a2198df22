"""What a model declares: documented defaults, and what must be given."""
from dataclasses import fields

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient import registry, zoo
from vit_efficient.seams import model as seam
from vit_efficient.settings.values import Rate, keywords


class Linear(seam.Model, nn.Module):
    """The example of the seam's file."""
    num_classes: int = 3
    image_size: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def features(self, images, *, train=False, shift=0.0):
        pixels = images.reshape(len(images), -1) + shift
        return {"logits": nn.Dense(self.num_classes, name="head")(pixels), "pixels": pixels}


def test_a_call_gives_the_logits_of_the_features_and_passes_knobs_on():
    model, images = Linear(), jnp.ones((2, 4, 4, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    found = model.apply(variables, images, shift=1.0, method="features")
    assert found["pixels"].shape == (2, 48)
    np.testing.assert_array_equal(model.apply(variables, images, shift=1.0), found["logits"])
    assert not np.array_equal(model.apply(variables, images), found["logits"])


def test_every_default_is_documented_and_no_field_of_the_module():
    model, text = Linear(), seam.Model.__doc__
    names = {name for name in seam.Model.__annotations__}
    assert names >= {"knobs", "no_decay", "order", "optional", "container", "class_token"}
    assert all(f"`{name}" in text for name in names)
    assert not names & {field.name for field in fields(model)}
    assert (model.knobs, model.container, model.extras(), model.official_names(("head",))) == (
        (), "model", {}, ())


def test_what_must_be_given_is_named():
    class Empty(seam.Model, nn.Module):
        num_classes: int = 3
    with pytest.raises(NotImplementedError, match="Empty does not say its `macs`"):
        Empty().macs()
    with pytest.raises(NotImplementedError, match="Empty has no `features`"):
        Empty().init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


def test_shapes_are_those_of_the_variables():
    model = Linear()
    variables = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    assert seam.shapes(model) == jax.eval_shape(lambda: variables)


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_maker_has_the_options_that_the_seam_lists(name):
    options = keywords(registry.variants("models")[name])
    listed = [line.split(":")[0].strip() for line in seam.__doc__.splitlines()
              if line.startswith("    ") and ": " in line and "=" in line and "  " in line.strip()]
    assert set(listed) == {"drop_rate", "attn_drop_rate", "drop_path", "scan", "remat"}
    assert set(listed) <= options.keys()
    assert options["drop_path"].annotation == Rate and options["scan"].annotation is bool
