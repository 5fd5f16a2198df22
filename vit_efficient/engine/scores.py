"""What an evaluation computes of a batch: loss, top-1 and top-5 of every prediction.

`Run.scoring` compiles `make_scoring`, as `Run.step` the training step; `engine/validation.py` adds
the sums up over a split.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vit_efficient.seams.objective import Forward, hits, soft_targets


def scores(logits: jax.Array, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums over the images of weight 1 and their count: loss (float32, nats), top1, top5; logits
    [B, K]."""
    weight = batch["weight"]
    target = soft_targets(batch["label"], logits.shape[-1], 0.0)
    each = {"loss": optax.softmax_cross_entropy(logits.astype(jnp.float32), target),
            "top1": hits(logits, batch["label"]),
            "top5": hits(logits, batch["label"], 5)}
    # A padded image may have any loss, an infinite one too: left out, not multiplied by zero.
    return {name: (jnp.where(weight > 0, value, 0).sum(), weight.sum())
            for name, value in each.items()}


def make_scoring(predictions: Callable, forward: Forward, normalize: Callable) -> Callable:
    """`(weights, step, batch) -> {prediction: {metric: (sum, count)}}`, to be jitted; `weights` as
    of `state.weights`, `predictions` an objective's."""
    def scoring(weights: dict, step: jax.Array, batch: dict) -> dict:
        batch = normalize(batch)
        fixed = {"collections": weights["collections"], "step": step}
        outputs = predictions(forward, weights["params"], fixed, batch["image"])
        return {name: scores(logits, batch) for name, logits in outputs.items()}
    return scoring
