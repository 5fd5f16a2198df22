"""Slices of As-ViT and SReT, by Scala's rule: against a slow cut by the official names, at every
legal width; batch statistics; both trained by Scala's objective. (Scala's own: tests/scala.)"""
from functools import partial
import re

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_efficient.data.sources import open_data
from vit_efficient.papers.scala.objective import scala
from vit_efficient.seams.objective import Forward
from vit_efficient.seams.phases import Phase
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model

ARCH = "4,2,2,1|2,1,1,1|2,1,2,1|3,1,1,1|8,{}"       # heads of 8 channels at 8
ASVIT = dict(name="asvit", num_classes=10, image_size=32, ape=True, drop_path=0.0)
SRET = dict(name="sret", num_classes=10, image_size=32, heads=(2, 4), depth=(1, 1),
            recursive_num=(1, 1), groups1=(4, 1), groups2=(2, 1), mlp_ratio=2.5, drop_path=0.0)
FULL = {"asvit": ASVIT | dict(arch=ARCH.format(8)), "sret": SRET | dict(base_dims=(8, 8))}

# Entry of an official file -> its axes that have a width; the first that matches.
AXES = {"asvit": {r"absolute_pos_embed": (2,), r"patch_embed\.proj": (0,), r"head\.2\.weight": (1,),
                  r"head\.2\.bias": (), r"weight": (0, 1), r"bias": (0,)},
        "sret": {r"num_batches_tracked|coefficient|^head\.bias": (),
                 r"pos_embed|^head\.weight": (1,), r"conv1|pools": (0,),
                 r"weight": (0, 1), r"bias|running": (0,)}}


def made(paper: str, **options):
    return create_model(**FULL[paper] | options)


def filled(model) -> dict:
    """Variables with noise in every entry, so that no slice equals another."""
    rng, own = np.random.default_rng(0), {"var": 2.0, "num_batches_tracked": 3.0}
    return jax.tree.map_with_path(lambda path, x: np.float32(
        own.get(path[-1].key, 0) + 0.3 * rng.standard_normal(x.shape) * bool(x.shape)),
        interop.shapes(model))


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 32, 32, 3)).astype(np.float32)


def slow_slice(paper: str, state: dict, ratio: float, first: bool) -> dict:
    """The official state_dict cut entry by entry, one axis after the other; the queries' scale is
    that of the full heads."""
    narrow = {}
    for name, array in state.items():
        axes = next(axes for pattern, axes in AXES[paper].items() if re.search(pattern, name))
        for axis in axes[:array.ndim]:
            size = array.shape[axis]
            kept = int(size * ratio)
            array = np.take(array, range(kept) if first else range(size - kept, size), axis)
        if ".qkv." in name:
            queries = len(array) // 3
            array = np.concatenate([array[:queries] * np.float32(ratio ** 0.5), array[queries:]])
        narrow[name] = array
    return narrow


@pytest.mark.parametrize("paper, ratio, first, narrow", [
    ("asvit", 0.25, True, dict(arch=ARCH.format(2))),
    ("asvit", 0.625, False, dict(arch=ARCH.format(5))),
    ("sret", 0.25, True, dict(base_dims=(2, 2))), ("sret", 0.75, False, dict(base_dims=(6, 6)))])
def test_a_width_is_the_narrow_model_with_weights_cut_by_hand(paper, ratio, first, narrow):
    model, alone = made(paper), made(paper, **narrow)
    variables = filled(model)
    by_hand = interop.from_torch(alone, slow_slice(paper, interop.to_torch(model, variables), ratio,
                                                   first))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), by_hand,
                 model.sliced(variables, ratio))
    # SReT's stem normalises by the statistics, in training by the batch.
    for train in (False, True)[:1 + (paper == "sret")]:
        run = lambda model, **knobs: jax.jit(partial(
            model.apply, train=train, rngs={"dropout": jax.random.key(0)}, **knobs))
        options = dict(permutation="identity") if paper == "sret" else {}
        expected = run(alone, **options)(by_hand, images())
        found = run(model, ratio=ratio, **options)(variables, images())
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert model.macs(ratio=ratio) == alone.macs() != model.macs()


def test_the_scale_of_the_full_heads_is_an_option_of_as_vit():
    """The same weights in a model that is given that scale; a fixed scale is that of all widths."""
    model = made("asvit", qk_scale=8 ** -0.5)
    variables = filled(model)
    alone = made("asvit", arch=ARCH.format(4), qk_scale=8 ** -0.5)
    expected = jax.jit(alone.apply)(model.sliced(variables, 0.5), images())
    for full in (model, made("asvit")):
        found = jax.jit(partial(full.apply, ratio=0.5))(variables, images())
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_other_knobs_reach_the_narrow_model():
    model, alone = made("asvit"), made("asvit", arch=ARCH.format(4))
    variables = filled(model)
    shapes = [[grid.shape for grid in jax.eval_shape(partial(
        net.apply, method="features", stride=8, **knobs), weights, images())["grids"]]
        for net, weights, knobs in ((model, variables, dict(ratio=0.5)),
                                    (alone, interop.shapes(alone), {}))]
    assert shapes[0] == shapes[1] and shapes[0][0] == (4, 4, 4, 4)
    assert model.macs(stride=8, ratio=0.5) == alone.macs(stride=8)


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 200))
def test_a_legal_width_of_as_vit_leaves_whole_heads(heads, width):
    if width < heads:
        return
    model = made("asvit", arch=f"4,1,1|2,1,1|2,1,1|2,1,1|{8 * heads},{width}")
    for ratio in model.ratios:
        net = model.subnet(ratio)
        assert net.arch.width == pytest.approx(ratio * width) and net.heads == model.heads
        # MAX_WIDTH cuts the last stages of the full model and of wide nets alike.
        whole = [n % h == 0 for n, h in zip(net.widths, net.heads) if n < 1024]
        assert all(whole) or model.ratios == (1.0,)
        assert all(n <= have for n, have in zip(net.widths, model.widths))
    if width % heads == 0:
        assert len(model.ratios) == width // heads


@settings(max_examples=30)
@given(st.integers(1, 48), st.integers(1, 3), st.sampled_from([1, 2, 3]))
def test_a_legal_width_of_sret_leaves_whole_heads_and_an_even_stem(dim, heads, factor):
    if dim * heads % 2:
        return
    model = made("sret", base_dims=(dim, factor * dim), heads=(heads, 2 * heads))
    for ratio in model.ratios:
        net = model.subnet(ratio)
        assert net.widths == pytest.approx([ratio * width for width in model.widths])
        assert net.widths[0] % 2 == 0 == net.widths[1] % net.widths[0]
        assert all(width % heads == 0 for width, heads in zip(net.widths, net.heads))
    assert len(model.ratios) == (dim if heads * dim // 2 % dim == 0 else dim // 2)


@pytest.mark.parametrize("paper, options, message", [
    ("asvit", dict(granularity=0.3), "model.granularity = 0.3: the 1, 2, 4, 8 heads of width 8, 16,"
     " 32, 64 allow multiples of 1/8, the nearest is 0.25"),
    ("asvit", dict(granularity=0.25, smallest_ratio=0.375), "multiple of model.granularity = 0.25"),
    ("sret", dict(granularity=0.25, base_dims=(42, 42), heads=(3, 6)), "multiples of 1/21")])
def test_widths_that_do_not_fit_are_refused(paper, options, message):
    with pytest.raises(ValueError) as error:
        made(paper, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("paper", FULL)
def test_a_width_that_is_not_trained_is_refused_with_those_that_are(paper):
    with pytest.raises(ValueError) as error:
        made(paper, granularity=0.25).subnet(0.3)
    assert "ratio = 0.3: the widths are 0.25, 0.5, 0.75, 1; with" in str(error.value)
    assert "every multiple of 1/8; the nearest is 0.25" in str(error.value)
    with pytest.raises(ValueError, match="objective.ratios: ratio = 0.3: the widths are 0.25, 0.5"):
        scala(Forward(made(paper, granularity=0.25), Phase(), {}), Phase(), None, taught="class",
              ratios=(0.3,))


@pytest.mark.parametrize("paper, options", [
    ("asvit", dict(granularity=0.25, arch="4,2,2,1|2,1,1,1|2,1,2,1|3,1,1,1|8,8")),
    ("sret", dict(granularity=0.5))])
def test_every_width_of_another_papers_model_learns(paper, options):
    """A few steps of Scala's objective on digits: the labels' part of each net's loss falls. Batch
    statistics are those that the full net alone would have left."""
    model = made(paper, smallest_ratio=0.5, **options)
    source = open_data(source="digits", image_size=32).train
    pixels = np.float32(source.images[:64, ..., :1]) / 128 - 1
    batch = {"image": jnp.asarray(pixels.repeat(4, 1).repeat(4, 2).repeat(3, 3)),
             "label": jnp.asarray(source.labels[:64])}
    objective = scala(Forward(model, Phase(), {}), Phase(), None, taught="class", ratios=None)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), batch["image"])
    tx, params = optax.adam(3e-3), variables.pop("params")

    @jax.jit
    def step(params, moments, collections, key):
        fixed = {"collections": collections, "step": 0}
        (_, aux), grads = objective.gradients(params, fixed, batch, key)
        updates, moments = tx.update(grads, moments)
        return optax.apply_updates(params, updates), moments, aux

    if variables:
        _, left = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))(
            {"params": params, **variables}, batch["image"], rngs={"dropout": jax.random.key(0)})
    moments, collections, seen = tx.init(params), variables, []
    for i in range(15):
        params, moments, aux = step(params, moments, collections, jax.random.key(i))
        collections = aux.collections
        seen.append({name: float(total / count) for name, (total, count) in aux.metrics.items()})
        if variables and not i:
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), left,
                         collections)
    labels = [name for name in seen[0] if name == "loss_full" or name.endswith("_ce")]
    assert len(labels) == len(model.ratios)
    for name in labels:
        assert seen[-1][name] < 0.93 * seen[0][name], (name, seen[0][name], seen[-1][name])
