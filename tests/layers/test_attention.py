"""Attention against loops over heads and tokens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.layers.attention import Attention, attend, softmax

CASES = [dict(num_heads=2), dict(num_heads=3, head_width=2), dict(num_heads=2, scale=0.7),
         dict(num_heads=1, qkv_bias=False)]


def slow(params: dict, x: np.ndarray, num_heads: int, head_width: int | None = None,
         scale: float | None = None, qkv_bias: bool = True) -> np.ndarray:
    """One sequence [N, D], head by head, in float64."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    D = x.shape[1]
    d = head_width or D // num_heads
    stacked = x @ params["qkv"]["kernel"] + (params["qkv"]["bias"] if qkv_bias else 0)
    out = np.zeros((len(x), num_heads * d))
    for head in range(num_heads):
        q, k, v = (stacked[:, (part * num_heads + head) * d:][:, :d] for part in range(3))
        for n in range(len(x)):
            scores = np.array([q[n] @ k[m] for m in range(len(x))]) * (scale or d ** -0.5)
            weights = np.exp(scores) / np.exp(scores).sum()
            out[n, head * d:(head + 1) * d] = weights @ v
    return out @ params["proj"]["kernel"] + params["proj"]["bias"]


def scaled_up(params: dict) -> dict:
    """Weights near 1 and biases that are not 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda w: jnp.float32(rng.normal(size=w.shape)), params)


@pytest.mark.parametrize("options", CASES)
def test_attention_is_the_loop(options):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)
    model = Attention(**options)
    params = scaled_up(model.init(jax.random.key(0), x)["params"])
    out = jax.jit(model.apply)({"params": params}, x)
    for place in np.ndindex(2, 3):                              # every window by itself
        np.testing.assert_allclose(out[place], slow(params, x[place], **options), atol=2e-5)


def test_the_softmax_is_its_formula_and_so_is_its_gradient():
    scores, change = np.random.default_rng(0).normal(size=(2, 3, 7, 11)).astype(np.float32) * 5
    exponentials = np.exp(np.float64(scores - scores.max(-1, keepdims=True)))
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    out, back = jax.vjp(softmax, jnp.asarray(scores))
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-30)
    gradient = expected * (change - (expected * change).sum(-1, keepdims=True))
    np.testing.assert_allclose(back(jnp.asarray(change))[0], gradient, atol=3e-6)


def test_the_softmax_of_bfloat16_sums_in_float32():
    """A weight is rounded by up to 1 in 256, but a row, whose total is not, adds up to 1."""
    scores = jnp.bfloat16(np.random.default_rng(0).normal(size=(64, 197)))
    out, back = jax.vjp(softmax, scores)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(out), jax.nn.softmax(jnp.float32(scores)), rtol=0.04)
    assert np.std(np.float64(out).sum(-1)) < 6e-4
    (gradient,) = back(jnp.ones_like(scores))              # a constant changes nothing
    np.testing.assert_allclose(np.float32(gradient), 0, atol=1e-4)


@pytest.mark.parametrize("dtype, atol", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attend_and_its_gradient_are_those_of_the_formula(dtype, atol):
    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("...qhd,...khd->...hqk", q, k))
        return jnp.einsum("...hqk,...khd->...qhd", weights, v)

    q, k, v, change = (jnp.asarray(x, dtype) for x in
                       np.random.default_rng(0).normal(size=(4, 2, 3, 7, 2, 5)))
    with jax.default_matmul_precision("highest"):
        wide = [jnp.float32(x) for x in (q, k, v, change)]
        expected, slow = jax.vjp(plain, *wide[:3])
        slow = slow(wide[3])
    out, back = jax.vjp(attend, q, k, v)
    assert out.dtype == dtype
    np.testing.assert_allclose(np.float32(out), expected, atol=atol)
    for mine, theirs in zip(back(change), slow):
        assert mine.dtype == dtype
        np.testing.assert_allclose(np.float32(mine), theirs, atol=4 * atol)


def test_dropped_weights_are_rescaled():
    """In training with `attn_drop` the outputs scatter about those of the evaluation."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 8)), jnp.float32)
    model = Attention(2, attn_drop=0.25)
    variables = model.init(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(1), 4000)
    drop = jax.jit(jax.vmap(lambda key: model.apply(variables, x, True, rngs={"dropout": key})))
    outs = np.asarray(drop(keys))
    assert outs.std(0).min() > 0
    tolerance = 6 * outs.std(0).max() / len(keys) ** 0.5
    np.testing.assert_allclose(outs.mean(0), model.apply(variables, x), atol=tolerance)


def test_attention_in_bfloat16_stores_float32():
    x = jnp.ones((1, 4, 8), jnp.bfloat16)
    model = Attention(2, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), x)
    assert {w.dtype for w in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(model.apply)(variables, x)
    assert program.out_avals[0].dtype == jnp.bfloat16
    types = {equation.primitive.name: str(equation.invars[0].aval.dtype)
             for equation in program.eqns}
    assert types["dot_general"] == "bfloat16"
