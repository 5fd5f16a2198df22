"""DVT beyond the fixtures: counts, refused options, splits and grids of any size, exits, gradients,
dropping."""
from functools import partial
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.papers.dvt import reuse
from vit_efficient.papers.dvt.models import T2T_SPLITS, dvt_deit, dvt_t2t, t2t_vit
from vit_efficient.papers.dvt.t2t import Split, linear_attention, map_sides, unfold
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model

SMALL = dict(width=32, depth=2, num_heads=2, mlp_ratio=2.0)
PATCHES = ((16, 16, 0), (11, 11, 1), (8, 8, 0))             # grids of 2, 3 and 4
SPLITS = ((7, 4, 2), (5, 3, 1), (3, 2, 1))                  # the same
deit = partial(dvt_deit, 5, 32, splits=PATCHES, **SMALL)
t2t = partial(dvt_t2t, 5, 32, splits=SPLITS, **SMALL)


def images(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, 32, 32, 3)).astype(np.float32)


def filled(model) -> dict:
    """Variables with noise in every entry, small enough for performers not to underflow."""
    rng = np.random.default_rng(0)

    def noise(path, x):
        matrix = path[-1].key == "kernel"
        scale = 0.7 / math.prod(x.shape[:-1]) ** 0.5 if matrix else 0.2
        return np.float32(scale) * rng.standard_normal(x.shape, np.float32)

    return jax.tree_util.tree_map_with_path(noise, interop.shapes(model))


def flat(tree: dict) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("name, giga", [("t2t_vit_12", 1.775), ("t2t_vit_14", 4.800)])
def test_single_backbones_have_the_counts_of_a_last_stage(name, giga):
    model = create_model(name)
    cascade = create_model("DVT_T2t_vit_" + name[-2:], feature_reuse=False, relation_reuse=False)
    assert round(sum(model.macs().values()) / 1e9, 3) == giga
    assert sum(model.macs().values()) == cascade.macs()["normal_token"]
    assert interop.shapes(model)["params"].keys() >= {"cls_token", "tokens_to_token", "blocks_11"}


@pytest.mark.parametrize("make, options, message", [
    (deit, dict(num_heads=5), "model.num_heads = 5: must divide model.width = 32"),
    (deit, dict(splits=()), "give token grids of sides [], which must increase"),
    (deit, dict(splits=((8, 8, 0), (16, 16, 0))), "sides [4, 2], which must increase from stage"),
    (t2t, dict(splits=((7, 4, 2), (7, 4, 2))), "sides [2, 2], which must increase from stage"),
    (t2t, dict(splits=((33, 8, 3),)), "a window of 33 pixels must fit the image's 32"),
    (deit, dict(splits=((8, 8, 8),)), "be wider than its padding"),
    (partial(t2t_vit, 5, 32, **SMALL), dict(split=(64, 4, 2)), "a window of 64 pixels must fit"),
    (partial(dvt_deit, 5, 32, **SMALL), dict(), "pixels they give token grids of sides [1, 1, 2]")])
def test_what_does_not_fit_is_refused(make, options, message):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("exit", [0, 4, -1])
def test_an_exit_that_is_not_there_is_refused(exit):
    with pytest.raises(ValueError, match=f"exit = {exit}: this model has the exits 1 to 3"):
        deit().macs(exit=exit)


@pytest.mark.parametrize("shape", [(1, 40, 40, 3), (1, 32, 32, 1)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match="made for image_size = 32 and 3 channels"):
        jax.eval_shape(lambda: deit().init(jax.random.key(0), jnp.zeros(shape)))


@pytest.mark.parametrize("split, size", [
    (Split(3, 2, 1), 7), (Split(7, 4, 2), 15), (Split(5, 2, 3), 8), (Split(2, 3, 0), 9),
    (Split(14, 8, 3), 32), (Split(4, 4, 0), 11)])
def test_windows_are_a_slow_loop_s(split, size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    k, stride, p = split
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    starts = range(0, size + 2 * p - k + 1, stride)
    rows = [padded[:, i:i + k, j:j + k].transpose(0, 3, 1, 2).reshape(2, -1)
            for i in starts for j in starts]
    assert len(starts) == split.side(size)
    np.testing.assert_array_equal(unfold(jnp.asarray(x), split), np.stack(rows, 1))


def test_maps_between_splits_have_the_official_sides():
    assert [map_sides(split, 224) for split in T2T_SPLITS] == [(28, 14, 7), (38, 19, 10),
                                                               (56, 28, 14)]


def test_linear_attention_is_the_sum_over_all_pairs():
    rng = np.random.default_rng(0)
    k, q, v = (0.3 * rng.normal(size=(1, 5, 64)).astype(np.float32) for _ in "kqv")
    w = rng.normal(size=(32, 64)).astype(np.float32)
    phi = lambda t: np.exp(w @ t - t @ t / 2) / 32 ** 0.5
    rows = []
    for query in q[0]:
        weights = [phi(query) @ phi(key) for key in k[0]]
        rows.append(weights @ v[0] / (sum(weights) + 1e-8))
    np.testing.assert_allclose(linear_attention(*map(jnp.asarray, (k, q, v, w)))[0], rows,
                               rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("coarse, fine", [(4, 7), (7, 14), (2, 3)])
def test_upsampling_is_nearest_then_the_average_of_each_cell(coarse, fine):
    grid = np.random.default_rng(0).normal(size=(coarse, coarse))
    wide, bounds = grid.repeat(2, 0).repeat(2, 1), [
        (i * 2 * coarse // fine, -(-(i + 1) * 2 * coarse // fine)) for i in range(fine)]
    slow = np.array([[wide[a:b, c:d].mean() for c, d in bounds] for a, b in bounds])
    x = np.concatenate([[9.0], grid.ravel()])[None, :, None].astype(np.float32)
    matrix = jnp.asarray(reuse.token_matrix(coarse, fine))
    up = np.asarray(reuse.upsample_tokens(jnp.asarray(x), matrix))[0, :, 0]
    assert up[0] == 0                                       # of the class token nothing is left
    np.testing.assert_allclose(up[1:].reshape(fine, fine), slow, atol=1e-6)
    if fine == 2 * coarse:
        np.testing.assert_array_equal(slow, wide)


def test_names_and_exits_of_longer_cascades():
    model = deit(splits=((32, 32, 0), *PATCHES))
    assert list(model.stages()) == ["less_less_less_token", "less_less_token", "less_token",
                                    "normal_token"]
    assert [fields["upstream"] for fields in model.stages().values()] == [0, 1, 2, 3]
    assert next(iter(interop.layout(model))) == "less_less_less_token.cls_token"
    assert list(deit(splits=PATCHES[1:]).stages()) == ["less_token", "normal_token"]


def test_an_exit_s_logits_need_no_stage_behind_it():
    model = deit(scan=True)
    variables = filled(model)
    whole = jax.jit(model.apply)(variables, images())
    part = jax.jit(partial(model.apply, exit=2))(
        {name: {stage: tree[stage] for stage in ("less_less_token", "less_token")}
         for name, tree in variables.items()}, images())
    assert len(whole) == 3 and len(part) == 2
    for a, b in zip(whole, part):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert a.shape == (2, 5) and a.dtype == jnp.float32
    macs = [sum(model.macs(exit=k).values()) for k in (1, 2, 3)]
    assert 0 < macs[0] < macs[1] < macs[2] == sum(model.macs().values())


def test_a_single_backbone_is_the_last_stage_of_a_cascade_without_reuse():
    cascade = t2t(feature_reuse=False, relation_reuse=False, splits=SPLITS[1:])
    single = t2t_vit(5, 32, split=SPLITS[-1], **SMALL)
    variables = filled(cascade)
    own = {name: tree["normal_token"] for name, tree in variables.items()}
    assert interop.to_torch(single, own).keys() == interop.layout(single).keys()
    np.testing.assert_allclose(jax.jit(single.apply)(own, images()),
                               jax.jit(cascade.apply)(variables, images())[-1], atol=1e-5)


def gradients(model, variables: dict) -> dict:
    """Of the last exit's squared logits."""
    constants = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        return jnp.square(model.apply({"params": params, **constants}, images())[-1]).sum()

    return jax.jit(jax.grad(loss))(variables["params"])


def test_gradients_pass_all_stages_and_miss_the_dead_context():
    """Of the last block's context embedding nothing reaches the class token; a stage's
    own head is not in the last exit's loss."""
    model = t2t(scan=True, splits=SPLITS[1:])
    for name, gradient in flat(gradients(model, filled(model))).items():
        dead = "normal_token/blocks_1/feature_resuse_mlp" in name
        dead |= name.startswith("less_") and ("/norm/" in name or "/head/" in name)
        assert dead == (not gradient.any()), name


def test_scan_and_remat_change_nothing():
    make = partial(deit, splits=PATCHES[1:])
    variables = filled(make())
    expected = gradients(make(), variables)
    for options in (dict(remat=True), dict(scan=True, remat=True)):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), expected,
                     gradients(make(**options), variables))


@pytest.mark.parametrize("options", [
    dict(drop_path=0.5), dict(drop_path=0.5, scan=True), dict(drop_rate=0.3, scan=True),
    dict(attn_drop_rate=0.3, scan=True)])
def test_training_drops_by_its_key(options):
    model = deit(splits=PATCHES[1:], **{"drop_path": 0.0} | options)
    variables = filled(model)
    run = jax.jit(partial(model.apply, train=True))
    first, again, other = (run(variables, images(), rngs={"dropout": jax.random.key(seed)})
                           for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert np.abs(a - c).max() > 1e-3


def test_performers_drop_in_training_whatever_the_other_rates_are():
    make = partial(t2t_vit, 5, 32, split=SPLITS[-1], drop_path=0.0, **SMALL)
    variables, key = filled(make()), jax.random.key(0)
    apply = lambda model, **more: jax.jit(partial(model.apply, **more))(
        variables, images(), rngs={"dropout": key})
    evaluated = apply(make())
    for rate, same in ((0.1, False), (0.0, True)):
        model = make(performer_drop=rate)
        trained, changed = apply(model, train=True, mutable=["constants"])
        assert np.allclose(trained, evaluated, atol=1e-5) == same
        jax.tree.map(np.testing.assert_array_equal, changed["constants"], variables["constants"])


def test_constants_are_the_tables_and_the_kernels_of_performers():
    model = t2t()
    found = {path.rpartition("/")[2] for path in flat(interop.shapes(model)["constants"])}
    assert found == {"w", "pos_embed"}
    assert interop.shapes(deit()).keys() == {"params"}


def test_a_file_with_another_reuse_says_which_option_it_needs():
    whole, plain = deit(), deit(feature_reuse=False)
    with pytest.raises(ValueError, match="feature_resuse_mlp comes with model.feature_reuse, "
                       "which only the file has"):
        interop.from_torch(plain, interop.to_torch(whole, filled(whole)))
    with pytest.raises(ValueError, match="feature_reuse, which only this model has"):
        interop.from_torch(whole, interop.to_torch(plain, filled(plain)))
