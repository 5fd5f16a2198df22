"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of a whole batch, as timm's
`Mixup` in its mode "batch": one decision and one share for all images, on the device."""
import jax
import jax.numpy as jnp


def mix(batch: dict, key: jax.Array, *, mixup: float, cutmix: float, probability: float,
        switch_probability: float) -> dict:
    """Mixes image i of B with image B-1-i, and their labels [B, K] by the same share.

    Images of uint8 stay so, rounded to the nearest integer (as in DVT's trainer). All frames of
    clips [B, F, H, W, 3] are mixed alike.

    Args:
      mixup, cutmix: alpha of the share's Beta(alpha, alpha); 0 is without that kind.
      probability: that the batch is mixed at all.
      switch_probability: that it is CutMix, where there are both kinds.
    Raises:
      ValueError: an odd batch, in which one image has no partner.
    """
    B, *_, height, width, _ = batch["image"].shape
    if B % 2:
        raise ValueError(f"batch_size = {B}: must be even, mixup and cutmix pair images")
    return blend(batch, *weights(key, (height, width), mixup=mixup, cutmix=cutmix,
                                 probability=probability, switch_probability=switch_probability))


def blend(batch: dict, own: jax.Array, share: jax.Array) -> dict:
    """`batch` of which pixels keep the shares `own` [H, W] and labels `share` []; the rest is the
    partner's."""
    image, label = batch["image"], batch["label"]
    mixed = own[:, :, None] * image + (1 - own[:, :, None]) * image[::-1]
    if image.dtype == jnp.uint8:
        mixed = jnp.rint(mixed).astype(jnp.uint8)
    return batch | {"image": mixed, "label": share * label + (1 - share) * label[::-1]}


def weights(key: jax.Array, size: tuple[int, int], *, mixup: float, cutmix: float,
            probability: float, switch_probability: float) -> tuple[jax.Array, jax.Array]:
    """What each pixel keeps of its own image, float32 [H, W]: a constant (mixup), or 0 in a box and
    1 around it (CutMix); and what the label keeps, float32 []: the constant, or the share of pixels
    outside of the box, as it is after the image's edge has cut it."""
    for_whether, for_kind, for_share, for_box = jax.random.split(key, 4)
    switch = switch_probability if mixup and cutmix else float(cutmix > 0)
    cut = jax.random.uniform(for_kind) < switch
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(for_share, alpha, alpha)
    outside = box(for_box, size, share)
    mixed = jax.random.uniform(for_whether) < probability
    # Not the mean of both: a float32 sum of a constant over the pixels is inexact.
    return (jnp.where(mixed, jnp.where(cut, outside, share), 1.0),
            jnp.where(mixed, jnp.where(cut, outside.mean(), share), 1.0))


def box(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """float32 [H, W]: 0 in a box of sides `int(side * sqrt(1 - share))` about a pixel uniform over
    the image, cut off at its edges; 1 elsewhere."""
    def along(key: jax.Array, side: int) -> jax.Array:
        half = (side * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
        centre, at = jax.random.randint(key, (), 0, side), jnp.arange(side)
        return (centre - half <= at) & (at < centre + half)
    rows, columns = map(along, jax.random.split(key), size)
    return 1.0 - (rows[:, None] & columns[None, :])
