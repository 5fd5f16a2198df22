"""Scala's training: four nets of one set of weights a step, each taught by the next larger one.

arXiv 2412.04786, section 3.2, and the authors' engine.py. Isolated activation, which end of the
channels a width takes, is the model's (models.py).
"""
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_efficient.engine.teacher import teacher_signal
from vit_efficient.papers.deit.objective import hard_label_loss, head_loss, missing_teacher
from vit_efficient.papers.scala.foundation import divergence, foundation
from vit_efficient.papers.scala.phases import FULL
from vit_efficient.papers.scala.probe import probe
from vit_efficient.papers.scala.widths import (
    check_widths_to_train,
    every_width,
    narrower_gradients,
    passes,
)
from vit_efficient.seams.objective import (
    Aux,
    Objective,
    accumulated,
    hits,
    soft_targets,
    supervised,
)
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Count, Fraction, NonNegative, Positive, Rate


def targets(label: jax.Array, *, num_classes: int, smoothing: float,
            bce: bool) -> tuple[jax.Array, jax.Array]:
    """float32 [B, K] for the full net and for the narrower ones, of whom unmixed labels are not
    smoothed; with `bce` every class above 0 is a label."""
    target = soft_targets(label, num_classes, smoothing)
    if bce:
        target = (target > 0).astype(jnp.float32)
    elif label.ndim == 1:
        return target, soft_targets(label, num_classes, 0.0)
    return target, target


def full_loss(forward: Callable, teacher: Callable | None, params: dict, fixed: dict,
              images: jax.Array, target: jax.Array, key: jax.Array, *, bce: bool, alpha: float,
              term: Callable) -> tuple[jax.Array, tuple]:
    """`(loss, (heads, collections))` of the full net: the labels', and as DeiT's the external
    teacher's where the model is distilled."""
    outputs, collections = forward(params, fixed, images, key, ratio=forward.model.largest_ratio)
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    base = (optax.sigmoid_binary_cross_entropy(heads[0], target).mean(-1) if bce
            else optax.softmax_cross_entropy(heads[0], target)).mean()
    if heads[1:]:
        signal = teacher_signal(teacher, fixed, {"image": images}, "logits")
        base = (1 - alpha) * base + alpha * term(heads[1], signal)
    return base, (heads, collections)


def narrow_loss(forward: Callable, ratio: float, params: dict, fixed: dict, images: jax.Array,
                teaching: jax.Array, key: jax.Array, *, head: int, target: jax.Array,
                passed: Callable, ce_weight: float) -> tuple[jax.Array, tuple]:
    """`(loss, (logits of the head that nets pass on, its cross-entropy))` at width `ratio`."""
    outputs, _ = forward(params, fixed, images, key, ratio=ratio)
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    ce = ce_weight * optax.softmax_cross_entropy(heads[0], target).mean()
    return passed(heads[head], teaching) + ce, (heads[head], ce)


class Nets(NamedTuple):
    """The nets of a step: their losses, the widths to draw from (none: the full net alone), the
    head that they pass on, whose labels the narrower ones learn and who teaches them. Batch
    statistics follow the full net; the others normalise by their own batch."""
    full: Callable
    narrow: Callable
    targets: Callable
    ratios: tuple[float, ...]
    head: int
    labels: str
    transfer: str

    def gradients(self, params: dict, fixed: dict, batch: dict, key: jax.Array):
        """An objective's gradients: those of all nets, added up."""
        for_widths, for_full, *for_nets = jax.random.split(key, 5)
        images, (target, narrow_target) = batch["image"], self.targets(batch["label"])
        (loss, (heads, collections)), total = jax.value_and_grad(self.full, has_aux=True)(
            params, fixed, images, target, for_full)
        right = hits(heads[0], batch["label"])
        metrics = {"top1": (right.sum(), right.size), "loss_full": (loss, 1.0)}
        if self.labels == "full":
            narrow_target = soft_targets(heads[0].argmax(-1), target.shape[-1], 0.0)
        learnt, total = narrower_gradients(
            partial(self.narrow, head=self.head, target=narrow_target), self.ratios,
            (for_widths, *for_nets), params, fixed, images, heads[self.head], total,
            progressive=self.transfer == "progressive")
        for name, net in learnt.items():
            loss += net.loss
            metrics |= {f"loss_{name}": (net.loss, 1.0), f"loss_{name}_ce": (net.more, 1.0)}
        return (loss, Aux(metrics, collections)), total


def separate(forward: Callable, phase: Phase, teacher: Callable | None, *,
             label_smoothing: Rate = 0.1,
             ratios: tuple[Fraction, ...] | None = (0.25, 0.5, 0.75, 1.0)) -> Objective:
    """The widest net alone learns (the paper's separate training), every width in `ratios` is
    scored: `width0.25` and so on, and the last of them as the model's own prediction."""
    _check_ratios(forward.model, ratios)
    made = supervised(forward, phase, teacher, label_smoothing=label_smoothing)
    return made._replace(predictions=partial(every_width, ratios=ratios), needs=("ratio",))


def scala(forward: Callable, phase: Phase, teacher: Callable | None, *,
          label_smoothing: Rate = 0.1, taught: Literal["distillation", "class"] = "distillation",
          kind: Literal["soft", "hard"] = "soft",
          transfer: Literal["progressive", "full"] = "progressive",
          labels: Literal["given", "full"] = "given", ce_weight: NonNegative = 1.0,
          distillation: Literal["hard", "soft"] = "hard", alpha: Fraction = 0.5,
          temperature: Positive = 1.0, bce: bool = False, groups: Count = 1,
          ratios: tuple[Fraction, ...] | None = (0.25, 0.5, 0.75, 1.0)) -> Objective:
    """The sum of four losses: of the full net, of an upper and a lower intermediate one, whose
    widths are drawn anew in every step, and of the smallest; in phase `full net` the first alone.

    The full net learns from the labels and, in a distilled model, from the teacher as in DeiT; a
    narrower one from the next larger net's logits, which get no gradient, and from the labels
    (noise calibration). The step's key, so seed and step number, draws the widths; the program
    holds each width once.

    Args:
      taught: the head that the nets pass on; a model that is not distilled has only "class".
      kind: "soft" is the divergence from the teaching net, "hard" cross-entropy with its likeliest
        class.
      transfer: "full" lets the full net teach all others (US-Net).
      labels: of the narrower nets, "full" takes the full net's likeliest classes.
      ce_weight: of the narrower nets' cross-entropy (noise calibration), 0 leaves it out.
      distillation, alpha, temperature: the external teacher's, see DeiT's `distilled`.
      bce: binary cross-entropy for the full net and every class above 0 as a label for all; needs
        a `label_smoothing` of 0.
      groups: parts of the batch with widths of their own; the authors' four processes are 4.
      ratios: widths that an evaluation scores, `None` for all.
    Raises:
      ValueError: a teacher for a model that is not distilled; a model whose widths have no
        granularity; `taught`, `bce`, `ratios` that do not go with the rest. A distilled model needs
        a teacher for training.
    """
    model, distilled = forward.model, forward.model.distilled
    _check(model, distilled, teacher is not None, taught, bce, label_smoothing)
    _check_ratios(model, ratios)
    widths = () if phase.objective == FULL else model.ratios
    nets = Nets(
        full=partial(full_loss, forward, teacher, bce=bce, alpha=alpha,
                     term=partial(head_loss, distillation, temperature=temperature)),
        narrow=partial(narrow_loss, forward, ce_weight=ce_weight,
                       passed=(partial(divergence, temperature=1.0) if kind == "soft"
                               else hard_label_loss)),
        targets=partial(targets, num_classes=model.num_classes, smoothing=label_smoothing, bce=bce),
        ratios=widths, head=int(distilled and taught == "distillation"), labels=labels,
        transfer=transfer)
    return Objective(accumulated(nets.gradients, groups), partial(every_width, ratios=ratios),
                     needs=("ratio",), teachers=("live",) if distilled else (),
                     missing=missing_teacher(teacher, "scala") if distilled else "",
                     passes=passes(model.largest_ratio, widths))


def _check_ratios(model, ratios: tuple[float, ...] | None) -> None:
    """Raises ValueError for widths to be scored that the model does not have."""
    for ratio in ratios or () if "ratio" in model.knobs else ():
        try:
            model.width_ratio(ratio)
        except ValueError as error:
            raise ValueError(f"objective.ratios: {error}") from None


def _check(model, distilled: bool, has_teacher: bool, taught: str, bce: bool,
           label_smoothing: float) -> None:
    """Raises ValueError for what does not go together in `scala`."""
    check_widths_to_train("scala", model)
    if has_teacher and not distilled:
        raise ValueError("objective.name = scala: a teacher needs a distilled model, this one has "
                         "no second head")
    if taught == "distillation" and not distilled:
        raise ValueError("objective.taught = distillation: this model has only the class head, "
                         "set objective.taught = class")
    if bce and label_smoothing:
        raise ValueError(f"objective.label_smoothing = {label_smoothing:g}: must be 0 with "
                         "objective.bce, which takes every class above 0 for a label")


VARIANTS = {"separate": separate, "scala": scala, "foundation": foundation, "probe": probe}
