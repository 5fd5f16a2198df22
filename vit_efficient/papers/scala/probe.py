"""Linear probing as the paper's transfer: a frozen Scala's features under one slimmable classifier.

arXiv 2412.04786, section 4 (UCF101, and the tables of the net taught by DINOv2); its code was not
published.
"""
from collections.abc import Callable
from functools import partial

import jax
import optax

from vit_efficient.papers.scala.widths import check_widths_to_train, draw, every_width, passes
from vit_efficient.seams.objective import Aux, Objective, hits, one_classifier, soft_targets
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Fraction, Rate


def probe(forward: Callable, phase: Phase, teacher: Callable | None, *,
          label_smoothing: Rate = 0.0,
          ratios: tuple[Fraction, ...] | None = (0.25, 0.5, 0.75, 1.0)) -> Objective:
    """The classifier of a frozen net: `optim.trained` = ("head*",) alone learns, by cross-entropy.

    The features are those of an evaluation, without dropping anything. The classifier of a model of
    many widths is sliced as the model slices its own: its slice at a width classifies the features
    of that width. A step adds up the losses of four widths, which it draws as Scala's training
    does: the widest, two between, the smallest; no width teaches another. A model of one width is
    probed at that. In a distilled model both heads learn, each on its own token's features, as one
    classifier: their mean, which an evaluation scores too.

    Args:
      ratios: widths that an evaluation scores, `None` for all.
    Raises:
      ValueError: a model whose widths have no granularity. Training needs `optim.trained`.
    """
    model = forward.model
    slimmable = "ratio" in model.knobs
    if slimmable:
        check_widths_to_train("probe", model)
    widths = model.ratios if slimmable else (None,)

    def net(ratio: float | None, params: dict, fixed: dict, images: jax.Array,
            target: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(cross-entropy, logits) at one width."""
        knobs = {"ratio": ratio} if slimmable else {}
        logits, _ = forward(params, fixed, images, None, **knobs)
        return optax.softmax_cross_entropy(logits, target).mean(), logits

    def loss(params: dict, fixed: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, Aux]:
        images = batch["image"]
        target = soft_targets(batch["label"], model.num_classes, label_smoothing)
        total, logits = net(widths[-1], params, fixed, images, target)
        right = hits(logits, batch["label"])
        metrics = {"top1": (right.sum(), right.size), "loss_full": (total, 1.0)}
        for name, (places, chosen) in (draw(key, len(widths)) if slimmable else {}).items():
            branches = [partial(net, widths[i]) for i in places]
            value, _ = jax.lax.switch(chosen, branches, params, fixed, images, target)
            total, metrics[f"loss_{name}"] = total + value, (value, 1.0)
        return total, Aux(metrics, fixed["collections"])

    taken = passes(widths[-1], widths) if slimmable else (({}, 1.0),)
    missing = "" if forward.frozen else (
        "objective.name = probe: trains the classifier of a frozen net, set optim.trained = "
        "('head*',)")
    return Objective(jax.value_and_grad(loss, has_aux=True),
                     partial(every_width, ratios=ratios) if slimmable else one_classifier,
                     missing=missing, passes=tuple((knobs, often / 3) for knobs, often in taken))
