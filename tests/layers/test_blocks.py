"""Stacks of blocks: a scan, a loop and rematerialisation agree; what stochastic depth drops."""
from itertools import product
import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.layers.blocks import drop_path, linear_rates, run_blocks
from vit_efficient.zoo import create_model

RATES = (0.0, 0.25, 0.5)


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, rate, train):
        return x + drop_path(self, nn.Dense(self.width, name="fc")(jnp.tanh(x)), rate, train)


class Net(nn.Module):
    rates: tuple[float, ...] = (0.0, 0.0, 0.0)
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        fields = {"width": x.shape[-1]}
        return run_blocks(self, Block, fields, x, list(self.rates), train,
                          scan=self.scan, remat=self.remat)


X = jax.random.normal(jax.random.key(0), (2, 4))
VARIABLES = Net().init(jax.random.key(1), X)


@pytest.mark.parametrize("scan, remat", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("train", [False, True])
def test_scan_and_remat_change_nothing(scan, remat, train):
    def loss(variables, **options):
        return (Net(**options).apply(variables, X, train) ** 2).sum()

    def run(**options):
        return jax.jit(jax.value_and_grad(lambda variables: loss(variables, **options)))

    found, expected = run(scan=scan, remat=remat), run()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 found(VARIABLES), expected(VARIABLES))
    program = str(jax.make_jaxpr(found)(VARIABLES))
    assert ("scan[" in program, "checkpoint" in program or "remat" in program) == (scan, remat)


@pytest.mark.parametrize("options", [{}, {"scan": True}, {"remat": True}])
def test_parameters_are_stored_by_block(options):
    variables = Net(**options).init(jax.random.key(1), X)
    jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)
    assert list(variables["params"]) == ["blocks_0", "blocks_1", "blocks_2"]


@pytest.mark.parametrize("scan, remat", [*product([False, True], repeat=2)])
def test_each_sample_loses_each_branch_at_its_rate(scan, remat):
    """Branches that add 1, 10 and 100 tell in the sum which of them a sample kept."""
    B = 2000
    params = {f"blocks_{i}": {"fc": {"kernel": jnp.zeros((2, 2)), "bias": jnp.full(2, 10.0 ** i)}}
              for i in range(3)}
    net = Net(RATES, scan=scan, remat=remat)
    out = jax.jit(lambda key: net.apply({"params": params}, jnp.zeros((B, 2)), True,
                                        rngs={"dropout": key}))(jax.random.key(2))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])         # a branch is dropped as a whole
    sizes = np.array([10 ** i / (1 - rate) for i, rate in enumerate(RATES)])
    cases = np.array([*product([0, 1], repeat=3)])
    error = np.abs(np.asarray(out[:, :1]) - cases @ sizes)      # [B, 8]
    assert error.min(1).max() < 1e-3
    kept = cases[error.argmin(1)]
    wanted = 1 - np.array(RATES)
    assert kept[:, 0].all()
    np.testing.assert_allclose(kept.mean(0), wanted, atol=5 * 0.5 / B ** 0.5)
    both = (kept[:, 1] & kept[:, 2]).mean()                     # blocks draw independently
    assert abs(both - wanted[1] * wanted[2]) < 5 * 0.5 / B ** 0.5


@pytest.mark.parametrize("scan", [False, True])
def test_the_key_decides_what_is_dropped(scan):
    net = Net((0.5, 0.5), scan=scan)
    apply = jax.jit(lambda seed: net.apply(VARIABLES, jnp.ones((64, 4)), True,
                                           rngs={"dropout": jax.random.key(seed)}))
    np.testing.assert_array_equal(apply(0), apply(0))
    assert (apply(0) != apply(1)).any()


def test_evaluation_and_rate_0_drop_nothing_and_need_no_key():
    expected = Net().apply(VARIABLES, X)
    for scan in False, True:
        np.testing.assert_allclose(Net(RATES, scan).apply(VARIABLES, X), expected, rtol=1e-6)
        np.testing.assert_allclose(Net(scan=scan).apply(VARIABLES, X, True), expected, rtol=1e-6)


def test_a_branch_keeps_its_type():
    class Drop(nn.Module):
        def __call__(self, x):
            return drop_path(self, x, jnp.float32(0.5), True)

    x = jnp.ones((8, 2), jnp.bfloat16)
    out = Drop().apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert out.dtype == jnp.bfloat16 and set(np.unique(out.astype(np.float32))) == {0, 2}


def test_rates_rise_linearly():
    np.testing.assert_allclose(linear_rates(0.3, 7), np.linspace(0, 0.3, 7), rtol=1e-12)
    assert linear_rates(0.3, 1) == [0.0]


def test_a_residual_streams_gradient_is_summed_once():
    """On a CPU: no fusion takes more arrays where more blocks come later."""
    def operands(depth: int) -> int:
        model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, patch_size=4,
                             width=64, num_heads=2, depth=depth)
        x = jnp.zeros((2, 32, 32, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        loss = lambda params, x: (model.apply({"params": params}, x) ** 2).sum()
        program = jax.jit(jax.grad(loss)).lower(params, x).compile()
        fused = re.findall(r" fusion\((.*?)\), kind", program.as_text())
        return max(each.count("%") for each in fused)
    assert operands(4) == operands(2)
