"""What a teacher says of images: a live model, or the rows of a stored one (data/stored.py).

Objectives that are taught call `teacher_signal` in their loss; `jobs/features.py` stores `signal`
of a whole training set, for the runs whose teacher that will be.
"""
from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.data.stored import Kind, Stored
from vit_efficient.layers.pool import class_token


def check_kind(key: str, model: nn.Module, kind: Kind) -> None:
    """ValueError, beginning with `key`, unless `signal` can ask `model` for `kind`."""
    if kind != "logits" and not model.class_token:
        raise ValueError(f"{key}: {type(model).__name__} gives no class token; a DeiT or a Scala "
                         "does, every model gives logits")


def signal(forward: Callable, params: dict, fixed: dict, images: jax.Array,
           kind: Kind) -> jax.Array:
    """What a model says of images [B, S, S, 3] in evaluation mode: its class token after the last
    norm, "class" [B, D], that and the patches' tokens, "tokens" [B, 1 + P, D], or "logits" [B, K].
    (A distilled model's second token is left out.)"""
    if kind == "logits":
        return forward(params, fixed, images, None)[0]
    found = forward(params, fixed, images, None, method="features")[0]["tokens"]
    if kind == "class":
        return class_token(found)
    return jnp.concatenate([found[:, :1], found[:, forward.model.prefix:]], 1)


def teacher_signal(teacher: Callable | Stored, fixed: dict, batch: dict, kind: Kind) -> jax.Array:
    """What the teacher says of a batch, float32, shaped as `signal`; a live one's weights come in
    `fixed`, a stored one's rows in the batch."""
    if isinstance(teacher, Stored):
        return batch["teacher"].astype(jnp.float32)
    weights = fixed["teacher"]
    fixed = fixed | {"collections": weights["collections"]}
    return signal(teacher, weights["params"], fixed, batch["image"], kind).astype(jnp.float32)


def signal_shape(teacher: Callable | Stored, kind: Kind) -> tuple[int, ...]:
    """The shape of what the teacher says of one image."""
    if isinstance(teacher, Stored):
        return teacher.shape
    side = teacher.model.image_size

    def first(images: jax.Array) -> jax.Array:
        variables = teacher.model.init(jax.random.key(0), images, train=False)
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        return signal(teacher, variables["params"], {"collections": collections}, images, kind)
    return jax.eval_shape(first, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)).shape[1:]
