"""SReT beside its fixtures: refused options, permutations, more passes, scan and remat, statistics
of the batch, duplicates in state_dicts."""
from functools import cache

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.fill import fill
from vit_efficient.layers.norm import BatchNorm
from vit_efficient.papers.sret.models import drop_path_rates, sret
from vit_efficient.weights import interop

TOY = dict(num_classes=5, image_size=32, base_dims=(4, 4), heads=(2, 4), depth=(4, 2),
           recursive_num=(2, 1), groups1=(4, 1), groups2=(2, 1), mlp_ratio=1.5, drop_path=0.0)
ONE = TOY | {key: TOY[key][:1] for key in ("base_dims", "heads", "depth", "recursive_num",
                                           "groups1", "groups2")}
IMAGES = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def toy(**options):
    """A model of one stage, two blocks of two passes over 16 tokens, and variables for it."""
    model = sret(**ONE | options)
    flat = traverse_util.flatten_dict(interop.shapes(model))
    return model, traverse_util.unflatten_dict({
        path: jnp.asarray(fill(model.official_names(path[1:])[0], leaf.shape), leaf.dtype)
        for path, leaf in flat.items()})


@cache
def applied(model, **static):
    """The model's compiled pass, in training `(variables, images, key)`."""
    if not static.get("train"):
        return jax.jit(lambda variables, images, **options: model.apply(
            variables, images, **static, **options))
    return jax.jit(lambda variables, images, key: model.apply(
        variables, images, rngs={"dropout": key}, mutable=["batch_stats"], **static)[0])


@pytest.mark.parametrize("options, message", [
    (dict(image_size=36), "data.image_size = 36: .*multiple of 8.*nearest is 32"),
    (dict(depth=(4, 2, 2)), r"model.base_dims = \(4, 4\): must have one entry a stage.* 3"),
    (dict(groups2=(2,)), r"model.groups2 = \(2,\): must have one entry a stage"),
    (dict(depth=(5, 2)), "model.depth = 5 in stage 0: .*model.recursive_num = 2, .*nearest is 4"),
    (dict(depth=(1, 2)), "model.depth = 1 in stage 0: .*nearest is 2"),
    (dict(groups1=(5, 1)), "model.groups1 = 5 in stage 0: must divide its 16 tokens.*nearest is 4"),
    (dict(groups2=(2, 3)), "model.groups2 = 3 in stage 1: must divide its 4 tokens"),
    (dict(groups2=((2, 2), 1)), "model.groups2 = .* stage 0: its blocks have 2 passes"),
    (dict(heads=(2, 5)), "20 channels in stage 1: must be a multiple of stage 0's 8"),
    (dict(base_dims=(3, 3), heads=(1, 2)), "3 channels in stage 0: the stem needs an even number"),
    (dict(base_dims=(4, 4), mlp_ratio=0.1), "model.mlp_ratio = 0.1: .*8 channels.*at least 0.125"),
])
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sret(**TOY | options)


def test_slices_of_14_do_not_fit_at_384():
    with pytest.raises(ValueError, match="groups1 = 14 in stage 1: .*576 tokens.*nearest is 12"):
        sret(image_size=384, groups1=(16, 14, 1), groups2=(1, 1, 1))


def test_images_of_another_size_are_refused():
    model, variables = toy()
    with pytest.raises(ValueError, match="40 x 40 pixels.*image_size = 32"):
        model.apply(variables, jnp.zeros((1, 40, 40, 3)))


def test_permutations():
    """In evaluation they follow the seed alone, in training the key; every image has the same."""
    model, variables = toy()
    apply = applied(model)
    first = apply(variables, IMAGES)
    np.testing.assert_array_equal(first, apply(variables, IMAGES, permutation_seed=0))
    others = [apply(variables, IMAGES, permutation_seed=1),
              applied(model, permutation="identity")(variables, IMAGES)]
    assert all(np.abs(first - other).max() > 1e-4 for other in others)
    np.testing.assert_allclose(first[1:2], apply(variables, IMAGES[1:2]), atol=1e-6)
    orders = [np.arange(16)] * 2
    np.testing.assert_allclose(others[1], apply(variables, IMAGES, permutations=orders), atol=1e-6)
    a, b, again = (applied(model, train=True)(variables, IMAGES, jax.random.key(seed))
                   for seed in (0, 1, 0))
    assert np.abs(a - b).max() > 1e-4
    np.testing.assert_array_equal(a, again)


@pytest.mark.parametrize("options, message", [
    (dict(permutations=[np.arange(16)]), r"permutations of \[16\] tokens: must be of \[16, 16\]"),
    (dict(permutation="none"), "permutation = none: allowed: identity, random"),
])
def test_other_permutations_are_refused(options, message):
    model, variables = toy()
    with pytest.raises(ValueError, match=message):
        model.apply(variables, IMAGES, **options)


def test_three_passes():
    """The second and third pass permute; a list gives each its slices; three names an array."""
    model, variables = toy(depth=(6,), groups2=((2, 4),))
    assert model.groups == ((4, 2, 4),)
    assert model.permuted() == [(f"transformers.0.blocks.{i}", 16) for i in (2, 4, 8, 10)]
    assert sret(**ONE | dict(depth=(6,))).groups == ((4, 2, 2),)
    assert model.official_names(("transformers_0", "blocks_6", "norm1", "scale")) == tuple(
        f"transformers.0.blocks.{i}.norm1.weight" for i in (6, 8, 10))
    assert model.official_names(("transformers_0", "blocks_7", "norm1", "bias")) == (
        "transformers.0.blocks.7.norm1.bias",)
    out = applied(model)(variables, IMAGES)
    scanned = applied(model.clone(scan=True))(variables, IMAGES)
    np.testing.assert_allclose(scanned, out, atol=2e-6)


@cache
def gradients(**options):
    """Loss, batch statistics and gradients of a training step."""
    model, variables = toy(**options)

    def value(params):
        out, changed = model.apply(
            variables | {"params": params}, IMAGES, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)})
        return jnp.sin(out).sum(), changed
    return jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])


@pytest.mark.parametrize("options", [dict(remat=True), dict(scan=True, remat=True)])
def test_scan_and_remat_change_nothing(options):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4),
                 gradients(), gradients(**options))


@pytest.mark.parametrize("scan", [False, True])
def test_each_pass_drops_anew(scan):
    """A block's two branches in two passes: 16 ways for a sample; two passes that dropped alike
    would have 4."""
    model, variables = toy(drop_path=0.9, scan=scan)    # the first block's rate is 0
    out = applied(model, train=True)(variables, np.repeat(IMAGES[:1], 512, 0), jax.random.key(3))
    ordered = np.sort(np.asarray(out).sum(1))
    assert 8 < (np.diff(ordered) > 1e-4).sum() + 1 <= 16


def test_dropout_is_in_training_alone():
    model, variables = toy(drop_rate=0.3, attn_drop_rate=0.3)
    plain = model.clone(drop_rate=0.0, attn_drop_rate=0.0)
    a, b = (applied(each)(variables, IMAGES) for each in (model, plain))
    np.testing.assert_allclose(a, b, atol=1e-6)
    a, b = (applied(each, train=True)(variables, IMAGES, jax.random.key(0))
            for each in (model, plain))
    assert np.abs(a - b).max() > 1e-3


def test_running_statistics():
    """Two steps written out: biased variance in the pass, unbiased in the running one."""
    batches = np.random.default_rng(1).normal(2, 3, size=(2, 2, 2, 3, 4)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), batches[0])
    mean, var = np.zeros(4), np.ones(4)
    for x in batches:
        out, changed = norm.apply(variables, x, True, mutable=["batch_stats"])
        flat = x.reshape(-1, 4).astype(float)
        np.testing.assert_allclose(
            out, (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), atol=1e-5)
        variables = variables | changed
        mean, var = 0.9 * mean + 0.1 * flat.mean(0), 0.9 * var + 0.1 * flat.var(0, ddof=1)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    assert stats["num_batches_tracked"] == 2
    np.testing.assert_allclose(norm.apply(variables, x), (x - mean) / np.sqrt(var + 1e-5),
                               atol=1e-5)


def test_stochastic_depth_counts_distinct_blocks():
    """The rates of the authors' models at 0.1."""
    expected = [(0, .005), (.02, .025, .03, .035, .04), (.07, .075, .08)]
    for found, rates in zip(drop_path_rates(0.1, (4, 10, 6), (2, 5, 3)), expected, strict=True):
        np.testing.assert_allclose(found, rates, rtol=1e-12)


def test_duplicates_that_differ_are_refused():
    model, variables = toy()
    state_dict = interop.to_torch(model, variables)
    assert len(state_dict) == 1 + 3 * 7 + 4 * (16 + 8) + 2 + 2
    name = "transformers.0.blocks.6.mlp.fc1.weight"
    state_dict[name] = state_dict[name] + 1
    with pytest.raises(ValueError, match=f"{name}: must equal transformers.0.blocks.4.mlp.fc1"):
        interop.from_torch(model, state_dict)


def test_features_without_classes():
    model = sret(**TOY | dict(num_classes=0))
    variables = interop.shapes(model)
    out = jax.eval_shape(lambda variables: model.apply(variables, IMAGES, method="features"),
                         variables)
    assert "head" not in variables["params"] and out["logits"].shape == (3, 16)
    assert [grid.shape for grid in out["grids"]] == [(3, 4, 4, 8), (3, 2, 2, 16)]
    assert model.macs()["head"] == 0
