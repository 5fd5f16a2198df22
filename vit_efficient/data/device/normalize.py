"""Transforms of a batch inside the compiled step: pure functions `(batch, key) -> batch`."""
import jax
import jax.numpy as jnp


def normalize(batch: dict, key: jax.Array | None, *, mean: tuple[float, float, float],
              std: tuple[float, float, float]) -> dict:
    """`image` of 0 to 255 [B, H, W, 3], uint8 or mixed floats -> float32, `mean` taken off and
    divided by `std`, both for pixels of 0 to 1; draws nothing. (Images cross to the device as
    uint8: a quarter of the transfer.)"""
    image = batch["image"].astype(jnp.float32) / 255
    return batch | {"image": (image - jnp.array(mean)) / jnp.array(std)}
