"""SReT beside its fixtures: refused options, permutations, more passes, scan and remat, statistics
of the batch, duplicates in state_dicts."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient import interop
from vit_efficient.layers.norm import BatchNorm
from vit_efficient.sret.models import drop_path_rates, sret

TOY = dict(num_classes=5, image_size=32, base_dims=(4, 4), heads=(2, 4), depth=(4, 2),
           recursive_num=(2, 1), groups1=(4, 1), groups2=(2, 1), mlp_ratio=1.5, drop_path=0.0)
IMAGES = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def toy(**options):
    """A model of two stages, 16 and 4 tokens, and its variables."""
    model = sret(**TOY | options)
    return model, jax.jit(model.init)(jax.random.key(0), IMAGES)


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
    with pytest.raises(ValueError, match="groups1 = 14 in stage 1: .*576 tokens.*nearest is 16"):
        sret(image_size=384, groups1=(16, 14, 1), groups2=(1, 1, 1))


def test_images_of_another_size_are_refused():
    model, variables = toy()
    with pytest.raises(ValueError, match="40 x 40 pixels.*image_size = 32"):
        model.apply(variables, jnp.zeros((1, 40, 40, 3)))


def test_permutations():
    """In evaluation they follow the seed alone, in training the key; every image has the same."""
    model, variables = toy()
    apply = jax.jit(model.apply, static_argnames=("train", "permutation"))
    first = apply(variables, IMAGES)
    np.testing.assert_array_equal(first, apply(variables, IMAGES, permutation_seed=0))
    others = [apply(variables, IMAGES, permutation_seed=1),
              apply(variables, IMAGES, permutation="identity")]
    assert all(np.abs(first - other).max() > 1e-4 for other in others)
    np.testing.assert_allclose(first[1:2], apply(variables, IMAGES[1:2]), atol=1e-6)
    orders = [np.arange(16)] * 2
    np.testing.assert_allclose(others[1], apply(variables, IMAGES, permutations=orders), atol=1e-6)
    a, b, again = (model.apply(variables, IMAGES, train=True, mutable=["batch_stats"],
                               rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 1, 0))
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
    model, variables = toy(depth=(6, 1), groups2=((2, 4), 1))
    assert model.groups == ((4, 2, 4), (1,))
    assert model.permuted() == [(f"transformers.0.blocks.{i}", 16) for i in (2, 4, 8, 10)]
    assert sret(**TOY | dict(depth=(6, 1))).groups == ((4, 2, 2), (1,))
    assert model.official_names(("transformers_0", "blocks_6", "norm1", "scale")) == tuple(
        f"transformers.0.blocks.{i}.norm1.weight" for i in (6, 8, 10))
    assert model.official_names(("transformers_0", "blocks_7", "norm1", "bias")) == (
        "transformers.0.blocks.7.norm1.bias",)
    assert model.apply(variables, IMAGES).shape == (3, 5)


@pytest.mark.parametrize("options", [dict(scan=True), dict(remat=True),
                                     dict(scan=True, remat=True)])
def test_scan_and_remat_change_nothing(options):
    model, variables = toy()

    def loss(model):
        def value(params):
            out, changed = model.apply(
                variables | {"params": params}, IMAGES, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)})
            return jnp.sin(out).sum(), changed
        return jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])

    expected, found = loss(model), loss(model.clone(**options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), expected, found)


@pytest.mark.parametrize("scan", [False, True])
def test_each_pass_drops_anew(scan):
    """With the branch's other coefficients at zero, two passes that dropped the same samples would
    leave each either dropped twice or kept twice."""
    model, variables = toy(drop_path=0.9, scan=scan, depth=(4, 2), groups1=None, groups2=None)
    images = np.repeat(IMAGES[:1], 512, 0)
    out = model.apply(variables, images, train=True, mutable=["batch_stats"], method="features",
                      rngs={"dropout": jax.random.key(3)})[0]["grids"][0]
    kinds = np.unique(np.asarray(out).reshape(512, -1).round(4), axis=0)
    # block 1 of stage 0 has two branches in two passes: 16 ways, of which each is likely enough
    assert len(kinds) == 16


def test_dropout_is_in_training_alone():
    model, variables = toy(drop_rate=0.3, attn_drop_rate=0.3)
    plain = model.clone(drop_rate=0.0, attn_drop_rate=0.0)
    np.testing.assert_array_equal(model.apply(variables, IMAGES), plain.apply(variables, IMAGES))
    a, b = (each.apply(variables, IMAGES, train=True, mutable=["batch_stats"],
                       rngs={"dropout": jax.random.key(0)})[0] for each in (model, plain))
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
    """The rates that spec sret.md 4 writes out."""
    expected = [(0, .005), (.02, .025, .03, .035, .04), (.07, .075, .08)]
    for found, rates in zip(drop_path_rates(0.1, (4, 10, 6), (2, 5, 3)), expected, strict=True):
        np.testing.assert_allclose(found, rates, rtol=1e-12)


def test_duplicates_that_differ_are_refused():
    model, variables = toy()
    state_dict = interop.to_torch(model, variables)
    assert len(state_dict) == 1 + 3 * 7 + 6 * (16 + 8) + 2 + 2 + 2
    name = "transformers.0.blocks.6.mlp.fc1.weight"
    state_dict[name] = state_dict[name] + 1
    with pytest.raises(ValueError, match=f"{name}: must equal transformers.0.blocks.4.mlp.fc1"):
        interop.from_torch(model, state_dict)


def test_features_without_classes():
    model, variables = toy(num_classes=0)
    out = model.apply(variables, IMAGES, method="features")
    assert "head" not in variables["params"] and out["logits"].shape == (3, 16)
    assert [grid.shape for grid in out["grids"]] == [(3, 4, 4, 8), (3, 2, 2, 16)]
    assert model.macs()["head"] == 0
