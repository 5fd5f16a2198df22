"""Position tables on other grids than the one that they were made for."""
import jax
import jax.numpy as jnp
import numpy as np


def resize_table(table: jax.Array, side: int) -> jax.Array:
    """A square table [1, R * R, D] on a grid of `side`: [1, side * side, D]; differentiable.

    A coarser grid that divides R gets block means, any other grid bilinear interpolation with
    half-pixel centres and without antialiasing: our rule for As-ViT's coarser tokens.
    """
    _, count, D = table.shape
    fine = round(count ** 0.5)
    if side == fine:
        return table
    if fine % side == 0:
        block = fine // side
        return table.reshape(1, side, block, side, block, D).mean((2, 4)).reshape(1, side * side, D)
    grid = table.reshape(1, fine, fine, D)
    grid = jax.image.resize(grid, (1, side, side, D), "bilinear", antialias=False)
    return grid.reshape(1, side * side, D)


def resize_bicubic(table: jax.Array, side: int, prefix: int = 0) -> jax.Array:
    """A square table [1, prefix + R * R, D] on a grid of `side`: [1, prefix + side * side, D].

    Torch's bicubic as DeiT's fine-tuning has it (its main.py); the `prefix` entries of the class
    and distillation tokens are copied.
    """
    fine, D = round((table.shape[1] - prefix) ** 0.5), table.shape[2]
    grid = bicubic(table[:, prefix:].reshape(1, fine, fine, D), side)
    return jnp.concatenate([table[:, :prefix], grid.reshape(1, side * side, D)], 1)


def bicubic(grid: jax.Array, side: int) -> jax.Array:
    """[B, R, R, D] -> [B, side, side, D] as torch's bicubic: a = -0.75, half-pixel centres, edges
    repeated, no antialiasing. `jax.image.resize` has a = -0.5: another picture."""
    rows = _bicubic_weights(grid.shape[1], side)
    columns = _bicubic_weights(grid.shape[2], side)
    return jnp.einsum("sr,brcd,tc->bstd", rows, grid, columns, precision="highest")


def _bicubic_weights(fine: int, side: int) -> np.ndarray:
    """What each of `side` points takes from each of `fine` points: float32 [side, fine]."""
    centres = (np.arange(side) + 0.5) * fine / side - 0.5
    first = np.floor(centres).astype(int)
    weights = np.zeros((side, fine))
    for tap in range(-1, 3):
        x = np.abs(centres - first - tap)
        # Keys' cubic convolution kernel with a = -0.75, inside and outside of distance 1
        inner = 1.25 * x ** 3 - 2.25 * x ** 2 + 1
        outer = -0.75 * (x ** 3 - 5 * x ** 2 + 8 * x - 4)
        np.add.at(weights, (np.arange(side), np.clip(first + tap, 0, fine - 1)),
                  np.where(x <= 1, inner, outer))
    return weights.astype(np.float32)
