"""DVT's objective: every exit learns the labels, all with weight 1 (the authors' code).

An evaluation scores each exit on all images, `exit1`, `exit2` and so on, and the last one as the
model's own prediction.
"""
from collections.abc import Callable

import jax
import optax

from vit_efficient.seams.objective import Aux, Objective, hits, soft_targets
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Rate


def exits(forward: Callable, phase: Phase, teacher: Callable | None, *,
          label_smoothing: Rate = 0.1) -> Objective:
    """The sum of the exits' soft cross-entropies, each a mean over the batch in float32.

    Predictions are those of the last exit, and of `exit1`, `exit2`, ... below their names; each
    exit's loss and top-1 are metrics too.
    """
    def loss(params, fixed, batch, key):
        outputs, collections = forward(params, fixed, batch["image"], key)
        target = soft_targets(batch["label"], outputs[0].shape[-1], label_smoothing)
        each = [optax.softmax_cross_entropy(logits, target).mean() for logits in outputs]
        metrics = {}
        for k, (logits, value) in enumerate(zip(outputs, each), 1):
            right = hits(logits, batch["label"])
            metrics |= {f"loss_exit{k}": (value, 1.0), f"top1_exit{k}": (right.sum(), right.size)}
        metrics["top1"] = metrics[f"top1_exit{len(each)}"]
        return sum(each), Aux(metrics, collections)

    def predictions(forward, params, fixed, images):
        outputs, _ = forward(params, fixed, images, None)
        return {"": outputs[-1]} | {f"exit{k}": logits for k, logits in enumerate(outputs, 1)}
    return Objective(jax.value_and_grad(loss, has_aux=True), predictions, needs=("exit",))


VARIANTS = {"exits": exits}
