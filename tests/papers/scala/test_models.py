"""Scala beyond the fixtures: counts, refused options, other ways to cut, gradients, dropping."""
from functools import partial

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.papers.deit.models import DeiT
from vit_efficient.papers.scala.models import Scala, scala
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model, list_models

toy = partial(scala, 10, 32, width=48, depth=2, num_heads=3, patch_size=8, drop_path=0.0)


def images(seed: int = 0, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 32, 32, 3)).astype(np.float32)


def filled(model: Scala, seed: int = 0) -> dict:
    """Variables with noise in every entry, so that no slice equals another."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32),
                        interop.shapes(model))


def flat(tree: dict) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(tree, sep="/")


def count(tree: dict) -> int:
    return sum(array.size for array in jax.tree.leaves(tree))


# The authors' code: parameters plain, parameters distilled, GF distilled.
TABLE = {
    ("small", 0.25): (1_532_104, 1_629_296, 0.370), ("small", 0.5): (5_717_416, 5_910_800, 1.266),
    ("small", 0.8125): (14_681_536, 14_995_160, 3.124),
    ("small", 1.0): (22_050_664, 22_436_432, 4.634),
    ("base", 0.25): (5_717_416, 5_910_800, 1.266),
    ("base", 0.4375): (16_972_024, 17_309_696, 3.595),
    ("base", 1.0): (86_567_656, 87_338_192, 17.676)}


@pytest.mark.parametrize("size, ratio", TABLE)
def test_counts_are_the_spec_s(size, ratio):
    plain = create_model(f"deit_{size}_patch16_224_scala")
    distilled = create_model(f"deit_{size}_distilled_patch16_224_scala")
    counts = [count(interop.shapes(model.subnet(ratio))) for model in (plain, distilled)]
    assert (*counts, round(distilled.flops(ratio=ratio) / 1e9, 3)) == TABLE[size, ratio]
    norms = 5 * 25 * 198 * distilled.subnet(ratio).width
    assert sum(distilled.macs(ratio=ratio).values()) == distilled.flops(ratio=ratio) - norms


@pytest.mark.parametrize("name, parameters", [
    ("deit_so_tiny_patch16_224", 1_532_104), ("deit_tiny_patch16_224", 5_717_416),
    ("deit_tiny_distilled_patch16_224", 5_910_800), ("deit_base_patch16_384", 86_859_496),
    ("deit_base_distilled_patch16_384", 87_630_032)])
def test_every_variant_has_its_parameters(name, parameters):
    side = int(name.rpartition("_")[2])
    model = create_model(f"{name}_scala", image_size=side, num_classes=1000)
    variables = interop.shapes(model)
    assert count(variables) == parameters
    assert len(jax.tree.leaves(variables)) == (155 if model.distilled else 152)
    assert model.image_size == side and model.subnet(0.25).width == model.width // 4


def test_there_are_nine_variants_and_the_free_one():
    assert len(list_models("*scala*")) == 10


@pytest.mark.parametrize("options, message", [
    (dict(smallest_ratio=1.0), "model.smallest_ratio = 1.0: must be above 0 and below"),
    (dict(smallest_ratio=0.0), "model.smallest_ratio = 0.0: must be above 0"),
    (dict(granularity=0.03125), "model.granularity = 0.03125: the 3 heads of width 48 allow"),
    (dict(granularity=0.1), "multiples of 1/16, the nearest is 0.125"),
    (dict(granularity=0.25, smallest_ratio=0.375), "model.smallest_ratio = 0.375: must be a mul"),
    (dict(granularity=0.25, largest_ratio=0.875), "model.largest_ratio = 0.875: must be a multi"),
    (dict(distilled=True, global_pool="avg"), "model.global_pool = avg: a distilled model"),
    (dict(distilled=True, no_embed_class=True), "model.no_embed_class = True: a distilled"),
    (dict(class_token=False), "model.class_token = False: needs model.global_pool = avg"),
    (dict(num_heads=5), "model.num_heads = 5: must divide model.width = 48"),
    (dict(patch_size=5), "must be a multiple of model.patch_size = 5, the nearest is 30")])
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError) as error:
        toy(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("ratio", [0.3, 0.1875, 0.125, 1.0625, 0.0, -0.5, float("nan"),
                                   float("inf"), 0.5 + 2e-6])
def test_an_untrained_width_is_refused_with_the_widths(ratio):
    with pytest.raises(ValueError) as error:
        toy(granularity=0.125).macs(ratio=ratio)
    assert "the widths are 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1;" in str(error.value)


@pytest.mark.parametrize("ratio, near", [(0.3, "0.3125"), (0.01, "0.0625"), (1.5, "1")])
def test_any_width_needs_whole_channels_in_each_head(ratio, near):
    model = toy(granularity=None)
    assert model.subnet(0.125).width == 6
    with pytest.raises(ValueError) as error:
        model.subnet(ratio)
    assert f"3 heads of width 48 allow multiples of 1/16; the nearest is {near}" in str(error.value)


def test_a_ratio_is_snapped_before_sides_are_chosen():
    model = toy(smallest_ratio=0.3125)
    variables = filled(model)
    exact, near = (model.sliced(variables, ratio)["params"] for ratio in (0.3125, 0.3125 - 9e-7))
    jax.tree.map(np.testing.assert_array_equal, exact, near)
    np.testing.assert_array_equal(exact["norm"]["scale"], variables["params"]["norm"]["scale"][:15])


@pytest.mark.parametrize("sides, ratio, firsts", [
    ("official", 0.5, (True, False)), ("official", 0.75, (False, False)),
    ("consistent", 0.5, (True, True)), ("consistent", 0.75, (False, False)),
    ("first", 0.5, (True, True)), ("first", 0.75, (True, True))])
def test_sides_of_a_distilled_model(sides, ratio, firsts):
    """`firsts`: of the blocks and the patch embedding; of tokens, positions, norm and heads."""
    model = toy(distilled=True, smallest_ratio=0.5, sides=sides)
    whole, C = filled(model), round(48 * ratio)
    slices, whole = (flat(tree["params"]) for tree in (model.sliced(whole, ratio), whole))
    ends = [slice(0, C) if first else slice(48 - C, 48) for first in firsts]
    for name in ("patch_embed/proj/kernel", "blocks_1/norm2/bias", "blocks_0/mlp/fc2/bias"):
        np.testing.assert_array_equal(slices[name], whole[name][..., ends[0]])
    for name in ("cls_token", "dist_token", "pos_embed", "norm/scale"):
        np.testing.assert_array_equal(slices[name], whole[name][..., ends[1]])
    for name in ("head", "head_dist"):
        np.testing.assert_array_equal(slices[f"{name}/kernel"], whole[f"{name}/kernel"][ends[1]])
        np.testing.assert_array_equal(slices[f"{name}/bias"], whole[f"{name}/bias"])


def test_queries_keys_and_values_apart():
    model = toy(qkv_slice="each")
    whole = filled(model)["params"]["blocks_0"]["attn"]["qkv"]
    part = model.sliced(filled(model), 0.5)["params"]["blocks_0"]["attn"]["qkv"]
    kept = np.concatenate([np.arange(start + 24, start + 48) for start in (0, 48, 96)])
    # the scale of heads of 16 channels for queries of heads of 8
    scale = np.repeat(np.float32([(8 / 16) ** 0.5, 1, 1]), 24)
    np.testing.assert_array_equal(part["kernel"], whole["kernel"][24:][:, kept] * scale)
    np.testing.assert_array_equal(part["bias"], whole["bias"][kept] * scale)


@pytest.mark.parametrize("options", [dict(), dict(qkv_slice="each", distilled=True),
                                     dict(global_pool="avg", class_token=False)])
def test_a_standalone_slice_gives_the_logits_of_the_width(options):
    model = toy(**options)
    variables = filled(model)
    net, weights = model.subnet(0.75), model.sliced(variables, 0.75)
    assert type(net) is DeiT and (net.width, net.num_heads, net.epsilon) == (36, 3, 1e-5)
    np.testing.assert_allclose(jax.jit(net.apply)(weights, images()),
                               jax.jit(partial(model.apply, ratio=0.75))(variables, images()),
                               atol=1e-5)


def test_gradients_reach_the_slice_and_nothing_else():
    model = toy(distilled=True)
    variables = filled(model)

    @jax.jit
    @jax.grad
    def grads(params):
        outputs = model.apply({"params": params}, images(), train=True, ratio=0.5)
        return sum(jnp.square(output).sum() for output in outputs)

    grads = grads(variables["params"])
    inside = jax.tree.map(np.ones_like, variables)
    cut = partial(model.sliced, ratio=0.5)
    marks = jax.jit(lambda inside: jax.vjp(cut, inside)[1](cut(inside))[0])(inside)
    for name, mark in flat(marks["params"]).items():
        grad = flat(grads)[name]
        assert not grad[mark == 0].any(), name
        # a constant added to all keys moves no attention weight: their bias has no gradient
        assert np.mean(grad[mark > 0] != 0) > 0.6, name


def test_scan_and_remat_change_nothing():
    variables = filled(toy())

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def grads(params, model):
        return jnp.square(model.apply({"params": params}, images(), ratio=0.5)).sum()

    expected = grads(variables["params"], toy())
    for options in (dict(scan=True), dict(remat=True), dict(scan=True, remat=True)):
        found = grads(variables["params"], toy(**options))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), expected, found)


@pytest.mark.parametrize("scan", [False, True])
def test_a_narrow_pass_drops_paths_by_its_key(scan):
    model = toy(drop_path=0.5, scan=scan)
    variables = filled(model)
    run = jax.jit(partial(model.apply, train=True, ratio=0.5))
    a, b, c = (run(variables, images(batch=16), rngs={"dropout": jax.random.key(seed)})
               for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_the_largest_width_below_one_is_the_default_and_cuts_positions():
    model = toy(largest_ratio=0.75, global_pool="avg", class_token=False)
    variables = filled(model)
    assert variables["params"]["pos_embed"].shape == (1, 16, 48)
    assert model.ratios[-1] == 0.75 and model.ratios[0] == 0.25
    table = model.sliced(variables)["params"]["pos_embed"]
    np.testing.assert_array_equal(table, variables["params"]["pos_embed"][..., :36])
    logits = [jax.jit(partial(model.apply, **knobs))(variables, images())
              for knobs in (dict(), dict(ratio=0.75))]
    np.testing.assert_array_equal(*logits)


def test_initial_weights_are_the_official_ones():
    model = scala(10, 32, width=192, depth=1, num_heads=3, distilled=True)
    deviations = {"cls_token": 1e-6, "dist_token": 0.02, "pos_embed": 0.02}

    @jax.jit                    # compiles what is looked at alone
    def some(key):
        params = model.init(key, images())["params"]
        return {name: params[name] for name in (*deviations, "patch_embed")}

    params = some(jax.random.key(0))
    for name, deviation in deviations.items():
        assert 0.7 < np.std(params[name]) / deviation < 1.3, name
    for array in params["patch_embed"]["proj"].values():
        assert 0.9 < np.abs(array).max() * 768 ** 0.5 <= 1


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match="made for image_size = 32"):
        toy().init(jax.random.key(0), np.zeros((1, 40, 40, 3), np.float32))
