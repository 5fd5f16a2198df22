"""Position tables on other grids than the one that they were made for."""
import jax


def resize_table(table: jax.Array, side: int) -> jax.Array:
    """A square table [1, R * R, D] on a grid of `side`: [1, side * side, D]; differentiable.

    A coarser grid that divides R gets block means, any other grid bilinear interpolation with
    half-pixel centres and without antialiasing (spec asvit.md 8.2).
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
