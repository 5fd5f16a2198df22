"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of a whole batch, as timm's
`Mixup` in its mode "batch": one decision and one share for all images, on the device."""
import jax
import jax.numpy as jnp


def mix(batch: dict, key: jax.Array, *, mixup: float, cutmix: float, probability: float,
        switch_probability: float) -> dict:
    """Mixes image i of B with image B-1-i, and their labels [B, K] by the same share.

    Images of uint8 stay so, rounded to the nearest integer (spec dvt.md 4.3).

    Args:
      mixup, cutmix: alpha of the share's Beta(alpha, alpha); 0 is without that kind.
      probability: that the batch is mixed at all.
      switch_probability: that it is CutMix, where there are both kinds.
    Raises:
      ValueError: an odd batch, in which one image has no partner.
    """
    image, label = batch["image"], batch["label"]
    if len(image) % 2:
        raise ValueError(f"batch_size = {len(image)}: must be even, mixup and cutmix pair images")
    own = weights(key, image.shape[1:3], mixup=mixup, cutmix=cutmix, probability=probability,
                  switch_probability=switch_probability)
    mixed = own[:, :, None] * image + (1 - own[:, :, None]) * image[::-1]
    if image.dtype == jnp.uint8:
        mixed = jnp.rint(mixed).astype(jnp.uint8)
    share = own.mean()
    return batch | {"image": mixed, "label": share * label + (1 - share) * label[::-1]}


def weights(key: jax.Array, size: tuple[int, int], *, mixup: float, cutmix: float,
            probability: float, switch_probability: float) -> jax.Array:
    """What each pixel keeps of its own image, float32 [H, W]: a constant (mixup), or 0 in a box and
    1 around it (CutMix). Its mean is the share of the own label: of a box that reaches over the
    edge, what is inside counts."""
    for_whether, for_kind, for_share, for_box = jax.random.split(key, 4)
    switch = switch_probability if mixup and cutmix else float(cutmix > 0)
    cut = jax.random.uniform(for_kind) < switch
    alpha = jnp.where(cut, cutmix, mixup)
    share = jax.random.beta(for_share, alpha, alpha)
    both = jnp.where(cut, box(for_box, size, share), jnp.full(size, share))
    return jnp.where(jax.random.uniform(for_whether) < probability, both, 1.0)


def box(key: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """float32 [H, W]: 0 in a box of sides `int(side * sqrt(1 - share))` about a pixel uniform over
    the image, cut off at its edges; 1 elsewhere."""
    def along(key: jax.Array, side: int) -> jax.Array:
        half = (side * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
        centre, at = jax.random.randint(key, (), 0, side), jnp.arange(side)
        return (centre - half <= at) & (at < centre + half)
    rows, columns = map(along, jax.random.split(key), size)
    return 1.0 - (rows[:, None] & columns[None, :])
