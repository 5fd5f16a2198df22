"""The zoo: names, and what every model of every room keeps to."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.limits import Rate
from vit_efficient.rooms import door, doors
from vit_efficient.values import keywords
from vit_efficient.zoo import create_model, list_models

NAMES = [name for name in list_models()
         if all(key.default is not key.empty for key in keywords(door("models", name)).values())]


def smallest() -> list[str]:
    """The cheapest named model of every room."""
    rooms: dict[str, list] = {}
    for name in NAMES:
        model = create_model(name)
        rooms.setdefault(type(model).__module__, []).append((sum(model.macs().values()), name))
    return [min(models)[1] for models in rooms.values()]


def test_names_match_a_shell_pattern():
    assert list_models() == sorted(doors("models")) and "asvit_small" in NAMES
    assert list_models("asvit_*") == ["asvit_base", "asvit_large", "asvit_small", "asvit_tiny"]
    assert list_models("*tiny_patch16_22?") == [
        name for name in list_models() if name.endswith("tiny_patch16_224")]
    assert list_models("none") == []


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="model.name = asvit_smal: did you mean asvit_small"):
        create_model("asvit_smal")


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_what_the_engine_asks(name):
    options = keywords(door("models", name))
    assert {"drop_path", "scan", "remat"} <= options.keys()
    assert options["drop_path"].annotation == Rate
    model = create_model(name, num_classes=7)
    assert model.num_classes == 7 and model.dtype == jnp.float32
    assert create_model(name, dtype="bfloat16").dtype == jnp.bfloat16
    assert all(isinstance(words, tuple) for words in (model.knobs, model.no_decay, model.order))
    counts = model.macs()
    assert all(type(count) is int and count >= 0 for count in counts.values())
    assert sum(create_model(name).macs().values()) > sum(counts.values())
    hash(model)                                                 # a static argument of a program


@pytest.mark.parametrize("name", smallest())
def test_every_room_puts_out_float32_logits_of_its_classes(name):
    model = create_model(name, num_classes=7, dtype="bfloat16")
    image = jax.ShapeDtypeStruct((2, model.image_size, model.image_size, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {np.dtype("float32")}

    def trained(variables, image):
        return model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(0)},
                           mutable=[kind for kind in variables if kind != "params"])[0]
    for forward in partial(model.apply, train=False), trained:
        for logits in jax.tree.leaves(jax.eval_shape(forward, variables, image)):
            assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
