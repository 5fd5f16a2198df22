"""Position tables on other grids, against loops over their points."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.layers.position import resize_bicubic, resize_table


def table(side: int, prefix: int = 0) -> np.ndarray:
    return np.random.default_rng(side).normal(size=(1, prefix + side ** 2, 3)).astype(np.float32)


def resampled(grid: np.ndarray, side: int, kernel, reach: int) -> np.ndarray:
    """[R, R, D] -> [side, side, D], point by point: half-pixel centres, edges repeated."""
    R = len(grid)
    out = np.zeros((side, side, grid.shape[2]))
    taps = range(1 - reach, reach + 1)
    for i, j in np.ndindex(side, side):
        y, x = ((n + 0.5) * R / side - 0.5 for n in (i, j))
        for a in (int(np.floor(y)) + tap for tap in taps):
            for b in (int(np.floor(x)) + tap for tap in taps):
                out[i, j] += (kernel(abs(y - a)) * kernel(abs(x - b))
                              * grid[np.clip(a, 0, R - 1), np.clip(b, 0, R - 1)])
    return out


def triangle(x: float) -> float:
    return max(1 - x, 0)


def cubic(x: float, a: float = -0.75) -> float:
    """Keys' convolution kernel."""
    if x <= 1:
        return (a + 2) * x ** 3 - (a + 3) * x ** 2 + 1
    return a * (x ** 3 - 5 * x ** 2 + 8 * x - 4) if x < 2 else 0


@pytest.mark.parametrize("fine, side", [(6, 3), (6, 2), (6, 1)])
def test_a_divisor_takes_block_means(fine, side):
    x, n = table(fine), fine // side
    grid = x.reshape(fine, fine, 3)
    expected = [grid[i:i + n, j:j + n].mean((0, 1))
                for i in range(0, fine, n) for j in range(0, fine, n)]
    np.testing.assert_allclose(resize_table(x, side)[0], expected, atol=1e-6)


@pytest.mark.parametrize("fine, side", [(6, 4), (5, 3), (4, 7), (3, 6)])
def test_other_grids_take_bilinear_values_without_antialiasing(fine, side):
    x = table(fine)
    expected = resampled(x.reshape(fine, fine, 3), side, triangle, 1)
    np.testing.assert_allclose(resize_table(x, side)[0], expected.reshape(-1, 3), atol=1e-6)


def test_the_own_grid_is_left_alone():
    x = table(4)
    assert resize_table(x, 4) is x


def test_gradients_flow_through_the_means():
    weights = jnp.arange(4.0).reshape(1, 4, 1)
    grad = jax.grad(lambda x: (weights * resize_table(x, 2)).sum())(jnp.zeros((1, 16, 3)))
    np.testing.assert_allclose(grad[0, :, 0], np.repeat(np.repeat(
        np.arange(4).reshape(2, 2), 2, 0), 2, 1).ravel() / 4)


@pytest.mark.parametrize("fine, side, prefix", [(4, 6, 0), (5, 3, 1), (3, 3, 2)])
def test_bicubic_is_torchs_and_copies_the_prefix(fine, side, prefix):
    x = table(fine, prefix)
    out = resize_bicubic(x, side, prefix)
    np.testing.assert_array_equal(out[:, :prefix], x[:, :prefix])
    expected = resampled(x[0, prefix:].reshape(fine, fine, 3), side, cubic, 2)
    np.testing.assert_allclose(out[0, prefix:], expected.reshape(-1, 3), atol=2e-6)
