"""Scala taught by a foundation model alone: no cross-entropy in any net (arXiv 2412.04786, its
DINOv2 teacher; "in the spirit of" Proteus, arXiv 2407.10366).

The authors published neither this code nor the losses; what is here is the nearest that both papers
say. Scala (section 3.2 and the README): every cross-entropy goes, the external teacher teaches the
full net and each narrower net is taught by the next larger one. Proteus (section 3 and its
models_proteus_dinov2.py): a head of LayerNorm and Linear for each target leads to the teacher's
width, and the loss is the mean square of what is left there, of the class token and of all tokens.
Proteus' third term, of masked patches, needs a student with a mask token, which a DeiT has not.
"""
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.data.stored import Kind, Stored
from vit_efficient.engine.teacher import check_kind, signal_shape, teacher_signal
from vit_efficient.layers.init import torch_default
from vit_efficient.layers.linear import Dense
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.pool import class_token
from vit_efficient.papers.deit.objective import missing_teacher, tempered_divergence
from vit_efficient.papers.scala.phases import FULL
from vit_efficient.papers.scala.widths import (
    check_widths_to_train,
    every_width,
    narrower_gradients,
    passes,
    width_name,
)
from vit_efficient.seams.objective import OWN, Aux, Objective, accumulated, hits
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Count, Fraction, Positive

EPSILON = 1e-5      # of torch's LayerNorm, which Proteus' heads have


class Projector(nn.Module):
    """Proteus' head: tokens [..., C] -> [..., width] in `dtype`, LayerNorm and Linear with torch's
    initial weights."""
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = torch_default(x.shape[-1])
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return Dense(self.width, dtype=self.dtype, kernel_init=kernel, bias_init=bias,
                     name="proj")(x)


def projectors(model, kind: Kind, width: int, key: jax.Array) -> dict:
    """The projectors to the teacher's `width` for every width of `model`: {"width0.25": {"token":
    ..., "feature": ...}}, of the class token and, for "tokens", of all tokens."""
    made = {}
    for i, ratio in enumerate(model.ratios):
        tokens = jnp.zeros((1, model.subnet(ratio).width))
        heads = ("token",) if kind == "class" else ("token", "feature")
        made[width_name(ratio)] = {
            head: Projector(width).init(jax.random.fold_in(key, 2 * i + j), tokens)["params"]
            for j, head in enumerate(heads)}
    return made


def projected(heads: dict, width: int, tokens: jax.Array) -> jax.Array:
    """A net's tokens [B, 1 + P, C] in the teacher's space, float32: the class token [B, 1, D] by
    the head "token" and, where there is one, the patches' behind it by "feature"."""
    project = Projector(width, tokens.dtype).apply
    first = project({"params": heads["token"]}, class_token(tokens))[:, None]
    if "feature" in heads:
        rest = project({"params": heads["feature"]}, tokens)
        first = jnp.where(jnp.arange(tokens.shape[1])[:, None] == 0, first, rest)
    return first.astype(jnp.float32)


def feature_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Proteus' token and feature terms, each of weight 1: with the class token first, [B, M, D],

        1/(B D) sum_bd (s_b0d - t_b0d)^2  +  1/(B M D) sum_bmd (s_bmd - t_bmd)^2 where M > 1
    """
    squares = jnp.square(student - teacher)
    token = class_token(squares).mean()
    return token + squares.mean() if student.shape[1] > 1 else token


def divergence(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """T^2 times the mean over B of KL(softmax(teacher/T) || softmax(student/T)), [B, K] each: at
    T = 1 what Scala's nets pass on."""
    return tempered_divergence(student, teacher, temperature) * student.shape[-1]


def foundation(forward: Callable, phase: Phase, teacher: Callable | Stored | None, *,
               signal: Kind = "tokens",
               transfer: Literal["progressive", "full", "teacher"] = "progressive",
               temperature: Positive = 1.0, groups: Count = 1,
               ratios: tuple[Fraction, ...] | None = (0.25, 0.5, 0.75, 1.0)) -> Objective:
    """The nets of a Scala step, each taught without a label: the full net by the teacher, the
    narrower ones by the next larger net, whose part gets no gradient; in phase `full net` the full
    net alone.

    With features every width has projectors of its own, trained with the run and stored in its
    checkpoints, but no part of the model: no export has them. What a net passes on are its
    projected features, which lie in the teacher's space whatever its width.

    Args:
      signal: "tokens", the teacher's class token and patch tokens; "class", its class token alone;
        "logits", which need a teacher of the data's classes and no projectors. With features the
        model's classifier learns nothing, and no accuracy is reported.
      transfer: who teaches the narrower nets: "progressive" the next larger one (Scala's order),
        "full" the full net, "teacher" the teacher itself (Proteus for each width).
      temperature: of the logits on both sides, see `divergence`.
      groups: parts of the batch with widths of their own, see `scala`.
      ratios: widths that an evaluation scores where logits teach, `None` for all.
    Raises:
      ValueError: a model without widths or with a second head; a teacher without this signal, or
        with another grid of patches or other classes. Nothing is resampled.
    """
    model = forward.model
    _check(model, signal, temperature)
    own = None
    if teacher is not None:
        _check_teacher(model, teacher, signal)
        if signal != "logits":
            own = partial(projectors, model, signal, signal_shape(teacher, signal)[-1])
    widths = () if phase.objective == FULL else model.ratios
    chain = Chain(forward=forward, teacher=teacher, signal=signal, transfer=transfer,
                  temperature=temperature, ratios=widths)
    missing = (f"{missing_teacher(None, 'foundation')}, or teacher.stored to a folder of "
               "--job=features")
    return Objective(
        accumulated(chain.gradients, groups),
        partial(every_width, ratios=ratios) if signal == "logits" else None, needs=("ratio",),
        teachers=("live", "stored"), missing="" if teacher else missing, init=own,
        passes=passes(model.largest_ratio, widths))


class Chain(NamedTuple):
    """The nets of a step, as the arguments of `foundation`; `ratios` are the widths to draw from
    (none: the full net alone)."""
    forward: Callable
    teacher: Callable | Stored
    signal: Kind
    transfer: str
    temperature: float
    ratios: tuple[float, ...]

    def learn(self, ratio: float, params: dict, fixed: dict, images: jax.Array,
              teaching: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple]:
        """`(loss, (what it passes on, collections))` of the net of width `ratio`."""
        if self.signal == "logits":
            said, collections = self.forward(params, fixed, images, key, ratio=ratio)
            return divergence(said, teaching, self.temperature), (said, collections)
        found, collections = self.forward(params, fixed, images, key, ratio=ratio,
                                          method="features")
        said = projected(params[OWN][width_name(ratio)], teaching.shape[-1], found["tokens"])
        return feature_loss(said, teaching), (said, collections)

    def gradients(self, params: dict, fixed: dict, batch: dict, key: jax.Array):
        """An objective's gradients: those of all nets, added up."""
        for_widths, for_full, *for_nets = jax.random.split(key, 5)
        images, teaching = batch["image"], teacher_signal(self.teacher, fixed, batch, self.signal)
        if self.signal == "class":
            teaching = teaching[:, None]
        full = partial(self.learn, self.forward.model.largest_ratio)
        (loss, (said, collections)), total = jax.value_and_grad(full, has_aux=True)(
            params, fixed, images, teaching, for_full)
        metrics = {"loss_full": (loss, 1.0)}
        if self.signal == "logits":
            right = hits(said, batch["label"])
            metrics["top1"] = right.sum(), right.size
        learnt, total = narrower_gradients(
            self.learn, self.ratios, (for_widths, *for_nets), params, fixed, images,
            teaching if self.transfer == "teacher" else said, total,
            progressive=self.transfer == "progressive")
        for name, net in learnt.items():
            loss += net.loss
            metrics[f"loss_{name}"] = net.loss, 1.0
        return (loss, Aux(metrics, collections)), total


def _check(model, signal: Kind, temperature: float) -> None:
    """Raises ValueError for a model or settings that do not go together in `foundation`."""
    check_widths_to_train("foundation", model)
    if model.distilled:
        raise ValueError("objective.name = foundation: needs a model with one head, as "
                         "deit_base_patch16_224_scala")
    check_kind(f"objective.signal = {signal}", model, signal)
    if signal != "logits" and temperature != 1:
        raise ValueError(f"objective.temperature = {temperature:g}: only objective.signal = logits "
                         f"reads it, this is {signal}")


def _check_teacher(model, teacher: Callable | Stored, signal: Kind) -> None:
    """Raises ValueError where the teacher cannot say `signal` of the model's images."""
    key = f"objective.signal = {signal}"
    if isinstance(teacher, Stored):
        if teacher.kind != signal:
            raise ValueError(f"{key}: {teacher} holds {teacher.kind}, set objective.signal = "
                             f"{teacher.kind}")
    else:
        check_kind(key, teacher.model, signal)
    said = signal_shape(teacher, signal)
    if signal == "logits" and said[-1] != model.num_classes:
        raise ValueError(f"{key}: the teacher has {said[-1]} classes, the data have "
                         f"{model.num_classes}")
    side = model.image_size // model.patch_size
    if signal == "tokens" and said[0] != 1 + side ** 2:
        raise ValueError(
            f"{key}: the teacher has {said[0] - 1} patches, the model {side} x {side} = "
            f"{side ** 2}, and tokens are not resampled; objective.signal = class needs no grid, "
            f"and a stored teacher may have seen images of {side} times its patch")
