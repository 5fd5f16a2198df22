"""As-ViT's model: windows, merging, tokenizations, sizes, options, counts."""
from functools import cache, partial

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.papers.asvit.models import (
    VARIANTS,
    AsViT,
    asvit,
    auto_dilation,
    grid_sides,
    largest_split,
    patches,
    pixel_first,
    same_padding,
)

SMALL = "4,2,2,1|2,2,1,1|3,1,1,2|2,1,1,1|8,8"


def model(**options) -> AsViT:
    return asvit(**{"num_classes": 3, "image_size": 64, "arch": SMALL} | options)


def abstract(made: AsViT) -> tuple:
    """Shapes of the variables and of one image; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, made.image_size, made.image_size, 3), jnp.float32)
    return jax.eval_shape(partial(made.init, train=False), jax.random.key(0), image), image


@cache
def weights(made: AsViT) -> dict:
    """Weights near 1 over the square root of a layer's inputs."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.float32(
        rng.normal(size=x.shape) / max(x.size // x.shape[-1], 1) ** 0.5), abstract(made)[0])


def features(made: AsViT, images, **options) -> dict:
    return jax.jit(partial(made.apply, method="features", **options))(weights(made), images)


def picture(side: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)


def names(tree: dict) -> set[str]:
    return {jax.tree_util.keystr(path, simple=True, separator="/")
            for path, _ in jax.tree_util.tree_leaves_with_path(tree["params"])}


@given(st.integers(1, 256), st.integers(2, 9), st.sampled_from([2, 4, 8, 16]), st.integers(1, 5))
def test_padding_is_xlas(side, kernel, stride, dilation):
    extent = (kernel - 1) * dilation + 1
    (expected,) = jax.lax.padtype_to_pads((side,), (extent,), (stride,), "SAME")
    assert same_padding(side, kernel, stride, dilation) == tuple(expected)


@given(st.integers(4, 9), st.sampled_from([4, 8, 16, 32]))
def test_the_dilated_kernel_covers_as_many_strides(kernel, stride):
    fits = [n for n in range(1, 40) if (kernel - 1) * n + 1 <= kernel * stride / 4]
    assert auto_dilation(kernel, stride) == max(fits)


def test_the_paper_prints_these_dilations():
    assert (auto_dilation(4, 16), auto_dilation(4, 8)) == (5, 2)


@given(st.integers(1, 9), st.integers(1, 60))
def test_a_split_is_the_largest_divisor(split, side):
    assert largest_split(split, side) == max(n for n in range(1, split + 1) if side % n == 0)


def test_grids_halve_upwards():
    assert grid_sides(224, 4) == (56, 28, 14, 7) and grid_sides(224, 16) == (14, 7, 4, 2)


@pytest.mark.parametrize("side, kernel", [(4, 2), (6, 3), (5, 4), (1, 3)])
def test_patches_are_padded_and_weights_follow_their_order(side, kernel):
    grid = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    out = -(-side // 2)
    total = (out - 1) * 2 + kernel - side
    padded = np.pad(grid, ((0, 0), (total // 2, total), (total // 2, total), (0, 0)))
    expected = [padded[:, 2 * i:2 * i + kernel, 2 * j:2 * j + kernel].transpose(0, 3, 1, 2)
                for i in range(out) for j in range(out)]
    expected = np.stack(expected, 1).reshape(2, out * out, -1)     # as stored: by channel
    found = jax.jit(patches, static_argnums=1)(grid, kernel)
    np.testing.assert_array_equal(found, pixel_first(expected.T, kernel).T)


def test_windows_do_not_see_each_other():
    """A stem of 4 pixels, a split of 2: one changed pixel moves its own quarter of stage 1 alone,
    and through the second stage's windows a quarter of that; the third attends to everything."""
    images = picture(64)
    changed = images.copy()
    changed[:, 3, 40] += 1                                      # top right
    made = model()
    before, after = (features(made, x)["grids"] for x in (images, changed))
    moved = [np.abs(a - b).max((0, 3)) > 0 for a, b in zip(before, after)]
    for grid in moved[:2]:
        half = len(grid) // 2
        assert grid[:half, half:].all() and grid.sum() == half ** 2
    assert moved[2].all() and moved[3].all()


@pytest.mark.parametrize("stride, sides", [(16, (4, 2, 1, 1)), (32, (2, 1, 1, 1))])
def test_one_set_of_weights_has_every_grid(stride, sides):
    out = features(model(ape=True), picture(64), stride=stride)
    assert [grid.shape for grid in out["grids"]] == [
        (2, side, side, 8 * 2 ** i) for i, side in enumerate(sides)]
    assert out["logits"].shape == (2, 3) and out["pooled_raw"].shape == (2, 64)


def test_features_at_another_size():
    """The same weights as a model that was made for that size, but for its position table."""
    out = features(model(ape=True), picture(96))
    assert [grid.shape[1] for grid in out["grids"]] == [24, 12, 6, 3]
    own = features(model(), picture(96))
    same = jax.jit(partial(model(image_size=96).apply))(weights(model()), picture(96))
    np.testing.assert_allclose(own["logits"], same, atol=1e-6)
    assert np.abs(out["logits"] - own["logits"]).max() > 1e-3


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="64 x 16 pixels: As-ViT takes square images"):
        jax.eval_shape(model().apply, weights(model()), jnp.zeros((1, 64, 16, 3)))


@pytest.mark.parametrize("options, less, more", [
    (dict(ape=True), set(), {"absolute_pos_embed"}),
    (dict(patch_norm=False), {"patch_embed/norm/bias", "patch_embed/norm/scale"}, set()),
    (dict(num_classes=0), {"head_2/bias", "head_2/kernel"}, set()),
    (dict(qkv_bias=False), {f"layers_{i}/blocks_{j}/attn/qkv/bias"
                            for i, j in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]}, set()),
    (dict(num_mlps=(1, 1, 1, 2)), set(), {f"layers_3/blocks_0/mlps_1_{part}" for part in (
        "0/bias", "0/scale", "1/fc1/bias", "1/fc1/kernel", "1/fc2/bias", "1/fc2/kernel")}),
])
def test_what_an_option_adds_and_leaves_out(options, less, more):
    plain, other = (names(abstract(made)[0]) for made in (model(), model(**options)))
    assert (plain - other, other - plain) == (less, more)


def test_without_classes_the_output_is_the_tanh_vector():
    out = features(model(num_classes=0), picture(64))
    assert out["logits"].shape == (2, 64) and np.abs(out["logits"]).max() <= 1
    head = weights(model(num_classes=0))["params"]["head_0"]
    expected = np.tanh(out["pooled_norm"] @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(out["logits"], expected, atol=1e-5)


def test_the_scale_of_the_queries_is_an_option():
    x = picture(64)
    default, same, other = (features(model(qk_scale=scale), x)["logits"]
                            for scale in (None, 8 ** -0.5, 1.0))
    np.testing.assert_allclose(default, same, atol=1e-6)
    assert np.abs(default - other).max() > 1e-4


@pytest.mark.parametrize("options", [
    dict(drop_rate=0.3, scan=True), dict(attn_drop_rate=0.3)])
def test_dropout_acts_in_training_alone(options):
    made, x = model(drop_path=0.0, **options), picture(64)
    variables = weights(model())

    @jax.jit
    def run(key):
        drop = partial(made.apply, variables, x, train=True)
        return made.apply(variables, x), drop(rngs={"dropout": key})

    (plain, first), (_, second) = (run(jax.random.key(seed)) for seed in range(2))
    np.testing.assert_allclose(plain, features(model(), x)["logits"], atol=1e-5)
    assert np.abs(first - plain).max() > 1e-3 and np.abs(first - second).max() > 1e-3


def test_bfloat16_inside_and_float32_at_the_ends():
    made = model(dtype="bfloat16", ape=True)
    variables, image = abstract(made)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(partial(made.apply, method="features"), variables, image)
    assert {grid.dtype for grid in out["grids"]} == {jnp.dtype("bfloat16")}
    assert {out[name].dtype for name in ("logits", "pooled_norm", "pooled_raw")} == {
        jnp.dtype("float32")}


def test_scan_and_remat_reach_the_blocks():
    for options in {}, {"scan": True}, {"remat": True}:
        made = model(**options)
        program = str(jax.make_jaxpr(jax.grad(lambda v, x: made.apply(v, x).sum()))(
            *abstract(made)))
        assert ("scan[" in program) == ("scan" in options)
        assert ("checkpoint" in program or "remat" in program) == ("remat" in options)


def multiply_adds(program) -> int:
    """Of the products and convolutions in a program's jaxpr."""
    total = 0
    for equation in program.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += multiply_adds(inner) if hasattr(inner, "eqns") else 0
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += out.size * int(np.prod([shape[axis] for axis in contracted]))
        if equation.primitive.name == "conv_general_dilated":
            total += out.size * equation.invars[1].aval.size // out.shape[-1]
    return total


@pytest.mark.parametrize("options", [
    {}, dict(stride=8), dict(stride=16, dilation=3), dict(num_mlps=(2, 1, 1, 3)),
    dict(arch="7,4,2,1|3,2,2,2|2,2,3,1|4,1,1,1|64,36"), dict(num_classes=0, ape=True)])
def test_multiply_adds_are_those_of_the_program(options):
    knobs = {name: options[name] for name in ("stride", "dilation") if name in options}
    made = model(**{name: value for name, value in options.items() if name not in knobs})
    counts = made.macs(**knobs)
    program = jax.make_jaxpr(partial(made.apply, **knobs))(*abstract(made)).jaxpr
    grids = grid_sides(64, knobs.get("stride", 4))
    bias, D = grids[0] ** 2 * made.arch.widths[0], made.arch.widths[3]
    assert counts.pop("pool") == 2 * (grids[3] ** 2 + 1) * D
    assert sum(counts.values()) == multiply_adds(program) + bias
    assert list(counts) == ["patch_embed", *(f"layers_{i}" for i in range(4)), "head_0", "head_2"]


@pytest.mark.parametrize("name, count, macs", [
    ("small", 29_051_296, 5_132_481_024), ("base", 52_622_428, 8_754_150_656),
    ("large", 88_145_300, 22_358_480_640)])
def test_the_published_models(name, count, macs):
    """The position table is in, and costs no multiply-adds."""
    made = VARIANTS[f"asvit_{name}"]()
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract(made)[0])) == count
    assert sum(made.macs().values()) == macs


@pytest.mark.parametrize("options, words", [
    (dict(image_size=48), "data.image_size = 48: As-ViT needs a multiple of 32"),
    (dict(arch="4,3,2|2,1,1|2,1,1|2,1,1|8,8"), "stage 1 has a grid of 16 x 16"),
    (dict(arch="4,2,2"), "model.arch = 4,2,2: 1 fields")])
def test_what_cannot_be_is_refused_before_anything_is_made(options, words):
    with pytest.raises(ValueError, match=words):
        model(**options)
