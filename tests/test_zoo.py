"""The zoo: names, and what every model of every paper keeps to."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient import registry
from vit_efficient.settings.values import Rate, keywords
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model, list_models

NAMES = [name for name, make in sorted(registry.variants("models").items())
         if all(key.default is not key.empty for key in keywords(make).values())]


def smallest() -> list[str]:
    """The cheapest named model of every paper."""
    papers: dict[str, list] = {}
    for name in NAMES:
        model = create_model(name)
        papers.setdefault(type(model).__module__, []).append((sum(model.macs().values()), name))
    return [min(models)[1] for models in papers.values()]


def test_names_match_a_shell_pattern():
    assert list_models() == sorted(registry.variants("models")) and "asvit_small" in NAMES
    assert list_models("asvit_*") == ["asvit_base", "asvit_large", "asvit_small", "asvit_tiny"]
    assert list_models("*tiny_patch16_22?") == [
        name for name in list_models() if name.endswith("tiny_patch16_224")]
    assert list_models("none") == []


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="model.name = asvit_smal: did you mean asvit_small"):
        create_model("asvit_smal")


@pytest.mark.parametrize("options, message", [
    (dict(init_values=1e-5), "model.init_values = 1e-05: sret_t has no such option"),
    (dict(drop_rat=0.1), "model.drop_rat = 0.1: .*did you mean drop_rate?"),
    (dict(drop_path=1.5), "model.drop_path = 1.5: must be a finite number at least 0 and below 1"),
    (dict(depth=2.5), "model.depth = 2.5: must be a tuple"),
    (dict(num_classes=-1), "model.num_classes = -1: must be a whole number at least 0"),
    (dict(dtype="float16"), "model.dtype = 'float16': must be one of float32, bfloat16"),
    (dict(no=1, drop_path="x"), r"(?s)model.no = 1.*\n  model.drop_path = 'x'")])
def test_a_wrong_option_is_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("sret_t", **options)


def test_a_missing_option_is_named():
    with pytest.raises(ValueError, match="model.arch is missing: asvit needs it"):
        create_model("asvit", num_classes=3)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_what_the_engine_asks(name):
    options = keywords(registry.variants("models")[name])
    assert {"drop_rate", "attn_drop_rate", "drop_path", "scan", "remat"} <= options.keys()
    assert options["drop_path"].annotation == Rate
    model = create_model(name, num_classes=7)
    assert model.num_classes == 7 and model.dtype == jnp.float32
    assert create_model(name, dtype="bfloat16").dtype == jnp.bfloat16
    assert create_model(name, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert all(isinstance(words, tuple) for words in (model.knobs, model.no_decay, model.order))
    counts = model.macs()
    assert all(type(count) is int and count >= 0 for count in counts.values())
    assert sum(create_model(name).macs().values()) > sum(counts.values())
    hash(model)                                                 # a static argument of a program


@pytest.mark.parametrize("name", smallest())
def test_every_paper_puts_out_float32_logits_of_its_classes(name):
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


# Cheapest model -> names of the features that its papers' other code needs, and their shapes.
FEATURES = {
    "asvit_tiny": {"grids": ((2, 24, 24, 32), (2, 12, 12, 64), (2, 6, 6, 128), (2, 3, 3, 256))},
    "deit_tiny_patch16_224": {"tokens": (2, 37, 192), "patch_embed": (2, 36, 192)},
    "deit_tiny_patch16_224_scala": {"tokens": (2, 37, 192), "patch_embed": (2, 36, 192)},
    "deit_tiny_patch16_224_half": {"tokens": (2, 37, 192), "tokens_in": (2, 37, 192)},
    "t2t_vit_12": {"tokens": (2, 36, 256), "features": (2, 37, 256)},
    "sret_t_wo_slice": {"grids": ((2, 12, 12, 64), (2, 6, 6, 128), (2, 3, 3, 256))}}


@pytest.mark.parametrize("name", FEATURES)
def test_features_only_gives_the_features_of_the_same_model(name):
    options = dict(num_classes=0, image_size=96)
    model, plain = create_model(name, features_only=True, **options), create_model(name, **options)
    assert model == create_model(name, features_only=True, **options) != plain
    assert create_model(name, features_only=False, **options) == plain
    image = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    assert interop.shapes(plain) == variables and interop.layout(plain) == interop.layout(model)
    found = jax.eval_shape(partial(model.apply, train=False), variables, image)
    shapes = jax.tree.map(lambda array: array.shape, found)
    assert {key: shapes[key] for key in FEATURES[name]} == FEATURES[name]
    # without classes the output is what the head would read
    assert not {path for path in interop.layout(plain) if "head.weight" in path}
    assert found["logits"].dtype == jnp.float32 and found["logits"].shape[0] == 2


def test_a_dense_task_gets_asvits_grids_at_other_multiples_of_32():
    model = create_model("asvit_tiny", image_size=224, features_only=True)
    variables = interop.shapes(model)
    for side in (32, 160, 320):
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        grids = jax.eval_shape(model.apply, variables, image)["grids"]
        assert [grid.shape[1:3] for grid in grids] == [(side // n,) * 2 for n in (4, 8, 16, 32)]


# A small model of every paper: options, draws by `drop_rate` (of the embedding, the projection and
# both layers of an MLP, SReT's unshared ones too) and by `attn_drop_rate` (of each attention).
SMALL = {
    "asvit": (dict(arch="4,2,2,1|2,1,2,1|2,1,2,1|2,1,2,1|8,8"), 1 + 4 * 3, 4),
    "deit": (dict(width=16, depth=2, num_heads=2, patch_size=8), 1 + 2 * 3, 2),
    "scala": (dict(width=16, depth=2, num_heads=2, patch_size=8, granularity=0.25), 1 + 2 * 3, 2),
    "svite": (dict(width=16, depth=2, num_heads=2, patch_size=8), 1 + 2 * 3, 2),
    "t2t_vit": (dict(width=16, depth=2, num_heads=2, mlp_ratio=2.0, performer_drop=0.0),
                1 + 2 * 3, 2),
    "sret": (dict(base_dims=(4, 4), heads=(2, 4), depth=(2, 2), recursive_num=(1, 1)),
             1 + 4 * 5, 4)}


def draws(jaxpr) -> int:
    """How many arrays of random bits a program draws."""
    parts = [getattr(value, "jaxpr", value) for equation in jaxpr.eqns
             for value in equation.params.values()]
    return (sum(equation.primitive.name == "random_bits" for equation in jaxpr.eqns)
            + sum(draws(part) for part in parts if hasattr(part, "eqns")))


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_everywhere_and_in_training_alone(name):
    options, drops, attention_drops = SMALL[name]
    for rates, expected in (({}, 0), (dict(drop_rate=0.1), drops),
                            (dict(attn_drop_rate=0.1), attention_drops)):
        model = create_model(name, num_classes=5, image_size=32, drop_path=0.0, **options, **rates)
        variables, image = interop.shapes(model), jnp.zeros((2, 32, 32, 3))

        def run(variables, train):
            return model.apply(variables, image, train=train, mutable=["batch_stats"],
                               rngs={"dropout": jax.random.key(0)})
        found = [draws(jax.make_jaxpr(partial(run, train=train))(variables).jaxpr)
                 for train in (False, True)]
        assert found == [0, expected], rates
