"""SViTE's models: what their options refuse, and what no fixture shows."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.papers.deit.models import deit
from vit_efficient.papers.svite.models import VARIANTS, svite
from vit_efficient.papers.svite.selector import gather, largest, select

SMALL = dict(num_classes=10, image_size=32, width=32, depth=2, num_heads=4, patch_size=8)
IMAGES = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
N = 17


def run(model, variables, **options):
    """Logits, compiled."""
    return jax.jit(lambda v: model.apply(v, IMAGES, **options))(variables)


def made(model):
    """Variables of the model, drawn without running its initialisers."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), IMAGES))
    rng = np.random.RandomState(2)
    return jax.tree.unflatten(tree, [
        np.float32(0.2 * rng.standard_normal(x.shape) + (x.ndim == 1)) for x in leaves])


@pytest.mark.parametrize("options, text", [
    (dict(num_heads=5), "model.num_heads = 5: must divide model.width = 32"),
    (dict(num_heads=5, head_width=8), "at most 4 in model.width = 32"),
    (dict(patch_size=7), "data.image_size = 32: must be a multiple of model.patch_size = 7, the "
                         "nearest is 35"),
    (dict(token_number=3), "model.token_number = 3: this model has no token selector"),
    (dict(token_number=0, token_selection="input"), "must be from 1 to 17"),
    (dict(token_number=18, token_selection="first"), "must be from 1 to 17"),
    (dict(token_mode="gather", token_selection="input"), "model.token_mode = gather"),
    (dict(token_mode="gather", token_selection="layers", token_number=3),
     "token_selection = input"),
])
def test_factory_refuses(options, text):
    with pytest.raises(ValueError, match=text):
        svite(**SMALL | options)


def test_call_refuses():
    plain, selecting = svite(**SMALL), svite(**SMALL, token_selection="input", token_number=9)
    variables = made(plain)
    with pytest.raises(ValueError, match="image_size = 32"):
        plain.apply(variables, jnp.zeros((1, 40, 40, 3)))
    for option in (dict(tau=1.0), dict(noise=jnp.zeros((1, 4, N)))):
        with pytest.raises(ValueError, match="this model has none"):
            run(plain, variables, **option)
    with pytest.raises(ValueError, match="a row a selector"):
        run(selecting, made(selecting), noise=jnp.zeros((2, 4, N)))


def test_every_variant_is_made():
    models = [make(num_classes=7) for make in VARIANTS.values()]
    assert {model.num_classes for model in models} == {7}
    assert len(set(models)) == len(models)


def test_without_selector_it_is_deit():
    model = svite(**SMALL, token_selection="layers")
    variables = made(model)
    np.testing.assert_allclose(run(deit(**SMALL), variables), run(model, variables), atol=1e-5)


def test_dead_rows_of_a_compact_projection_change_nothing():
    model = svite(**SMALL | dict(num_heads=3, head_width=8))
    variables = made(model)
    for rows, same in ((slice(24, None), True), (slice(23, 24), False)):
        changed = jax.tree.map(np.copy, variables)
        changed["params"]["blocks_1"]["attn"]["proj"]["kernel"][rows] = 0
        assert np.array_equal(run(model, changed), run(model, variables)) == same


@pytest.mark.parametrize("selection", [None, "layers"])
def test_scan_and_remat_compute_the_same(selection):
    number = 9 if selection else None
    sizes = SMALL | dict(token_selection=selection, token_number=number)
    noise = dict(noise=jax.random.gumbel(jax.random.key(3), (3, 4, N))) if selection else {}
    variables = made(svite(**sizes))
    logits = run(svite(**sizes), variables, **noise)
    for option in (dict(scan=True), dict(remat=True)):
        np.testing.assert_allclose(run(svite(**sizes, **option), variables, **noise), logits,
                                   atol=1e-5)


def test_selection_is_a_slow_loop():
    log_prob, noise = np.random.RandomState(0).randn(2, 5, N).astype(np.float32)
    found = select(log_prob, noise, 0.5, 6)
    for i, scores in enumerate(log_prob + noise):
        best = sorted(range(N), key=lambda n: -scores[n])[:6]
        assert sorted(np.flatnonzero(found.topk[i])) == sorted(best)
        assert sorted(np.flatnonzero(found.mask[i])) == sorted({0, *best})
    np.testing.assert_array_equal(found.weights, found.mask)


def test_selection_at_a_low_temperature_and_with_ties():
    scores = jnp.linspace(0, 30, N)[None]
    assert np.flatnonzero(select(scores, 0.0, 0.1, 12).topk[0]).tolist() == list(range(5, N))
    assert np.flatnonzero(largest(jnp.zeros((1, N)), 3)[0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("tau", [10.0, 0.5])
def test_gradient_is_that_of_the_softmax_without_the_class_token(tau):
    log_prob, noise, out = np.random.RandomState(0).randn(3, 2, N).astype(np.float32)
    through = jax.grad(lambda l: (select(l, noise, tau, 6).weights * out).sum())(log_prob)
    soft = jax.grad(lambda l: (jax.nn.softmax((l + noise) / tau)[:, 1:] * out[:, 1:]).sum())
    np.testing.assert_allclose(through, soft(log_prob), atol=1e-6)


def test_gather_computes_a_shorter_sequence_of_the_same_tokens():
    x = np.random.RandomState(0).randn(2, N, 3).astype(np.float32)
    mask = np.zeros((2, N), bool)
    mask[0, [0, 3, 16]] = mask[1, [0, 1, 2]] = True
    np.testing.assert_array_equal(gather(x, mask, 3), [x[0, [0, 3, 16]], x[1, :3]])
    model = svite(**SMALL, token_selection="input", token_number=9, token_mode="gather")
    variables = made(model)
    seen = jax.eval_shape(lambda v: model.apply(v, IMAGES, method="features"), variables)
    assert seen["tokens_in"].shape == (4, 9, 32)
    assert model.macs()["blocks_0"] < svite(**SMALL).macs()["blocks_0"]
    every = svite(**SMALL, token_selection="input", token_number=N, token_mode="gather")
    plain = {"params": {k: v for k, v in variables["params"].items() if k != "gumbel"}}
    np.testing.assert_allclose(run(every, variables), run(svite(**SMALL), plain), atol=1e-5)


def test_noise_is_drawn_in_training_and_where_a_key_is_given():
    model = svite(**SMALL, token_selection="input", token_number=5)
    variables = made(model)

    @partial(jax.jit, static_argnames="train")
    def entering(noise=None, seed=None, train=False):
        rngs = None if seed is None else {"dropout": jax.random.key(seed)}
        return model.apply(variables, IMAGES, train=train, tau=2.0, noise=noise, rngs=rngs,
                           method="features")["tokens_in"]

    np.testing.assert_array_equal(entering(), entering(jnp.zeros((1, 4, N))))
    np.testing.assert_array_equal(entering(seed=0, train=True), entering(seed=0))
    assert (entering(seed=0) != entering(seed=1)).any()
    assert (entering(seed=0) != entering()).any()


def test_selectors_learn_in_every_block():
    model = svite(**SMALL, token_selection="layers", token_number=5)
    loss = lambda v: model.apply(v, IMAGES, train=True, rngs={"dropout": jax.random.key(0)}).sum()
    grads = jax.jit(jax.grad(loss))(made(model))["params"]
    each = [grads["gumbel"], *(grads[f"blocks_{i}"]["attn"]["gumbel"] for i in range(2))]
    assert min(np.abs(one["kernel"]).max() for one in each) > 1e-4
