"""The objective seam: what a step minimises. An objective returns gradients, because only it knows
how many passes a step has; `predictions` names the outputs that an evaluation scores.

A paper's `objective.py` holds a table `VARIANTS` of makers by name,

    make(forward: Forward, phase: Phase, teacher: Forward | Stored | None, *,
         temperature: Positive = 1.0, ...) -> Objective

whose keyword-only arguments are the keys of the config group `objective`. An example, whole:

    def squared(forward, phase, teacher):
        def loss(params, fixed, batch, key):
            logits, collections = forward(params, fixed, batch["image"], key)
            target = soft_targets(batch["label"], logits.shape[-1], 0.0)
            return jnp.square(logits - target).mean(), Aux({}, collections)
        return Objective(jax.value_and_grad(loss, has_aux=True), one_classifier)

    VARIANTS = {"squared": squared}

One that is taught asks `engine/teacher.teacher_signal(teacher, fixed, batch, "logits")`, says which
`teachers` it reads, and is also made without one (an evaluation has none): `missing` then says what
training needs. Below: the types, what bounds a step's memory, what most objectives share, and the
engine's own variant.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Rate

OWN = "objective"     # the top key of `params` under which an objective's own parameters stand


class Aux(NamedTuple):
    """What a step learns besides the loss: metrics as `(sum, count)`, the model's collections after
    the pass, and signals for a topology update."""
    metrics: dict = {}
    collections: dict = {}
    signals: dict = {}


class Objective(NamedTuple):
    """`gradients(params, fixed, batch, key) -> ((loss, Aux), gradients)`;
    `predictions(forward, params, fixed, images) -> {name: logits [B, K]}`;
    `needs`: the knobs of the model that it uses; `teachers`: the kinds of teacher that it reads,
    "live" (a model, as a `Forward`) and "stored" (a `data.stored.Stored`, whose rows are
    `batch["teacher"]`); `missing`: what training must be given first, in words (an evaluation goes
    without); `passes`: the model's passes in a training step, forward and backward, as pairs of the
    knobs that it sets and how often on average; one forward is a third; `init(key)`: parameters of
    its own, in every phase the same.

    What `init` returns is trained, averaged and stored under `params[OWN]`; a model's pass
    does not see it, and no export, teacher or other run's start has it. `predictions` is None where
    nothing that is trained can be scored.
    """
    gradients: Callable
    predictions: Callable | None
    needs: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    missing: str = ""
    passes: tuple[tuple[dict, float], ...] = (({}, 1.0),)
    init: Callable | None = None


@dataclass(frozen=True)
class Forward:
    """An objective's forward: `(params, fixed, images, key, **knobs) -> (outputs, collections)`.

    The phase's static knobs and the step's scalars (functions of the traced step) are in it. With a
    key it is a training pass, with `None` an evaluation, which changes no collection. Of clips
    [B, F, S, S, 3] in place of images [B, S, S, 3] the outputs for the F frames are averaged.
    `frozen(params)` says which parameters keep their values: no gradient of them is computed.
    `method` is the model's, as "features".
    """
    model: nn.Module
    phase: Phase
    scalars: dict[str, Callable]
    frozen: Callable[[dict], dict] | None = None

    def __call__(self, params: dict, fixed: dict, images: jax.Array, key: jax.Array | None,
                 method: str | None = None, **knobs) -> tuple:
        if self.frozen:
            params = jax.tree.map(lambda leaf, frozen: jax.lax.stop_gradient(leaf) if frozen else
                                  leaf, params, self.frozen(params))
        frames = images.shape[1] if images.ndim == 5 else 0
        if frames:
            images = images.reshape(-1, *images.shape[2:])
        traced = {name: at(fixed["step"]) for name, at in self.scalars.items()}
        collections, train = fixed["collections"], key is not None
        outputs, changed = self.model.apply(
            {"params": of_model(params), **collections}, images, train=train, method=method,
            rngs={"dropout": key} if train else None, mutable=list(collections) if train else [],
            **(dict(self.phase.model) | traced | knobs))
        if frames:
            outputs = jax.tree.map(lambda x: x.reshape(-1, frames, *x.shape[1:]).mean(1), outputs)
        return outputs, {**collections, **changed}


def of_model(params: dict) -> dict:
    """`params` without those that the objective brought."""
    return {part: tree for part, tree in params.items() if part != OWN}


def accumulated(gradients: Callable, parts: int) -> Callable:
    """An objective's `gradients` over `parts` slices of the batch, averaged: the memory of one.

    Every `parts`-th example goes to a slice, so that each device keeps its own share of each; a
    slice has a key of its own.
    """
    if parts == 1:
        return gradients

    def whole(params, fixed, batch, key):
        slices = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def one(collections, inputs):
            part, i = inputs
            (loss, aux), grads = gradients(
                params, fixed | {"collections": collections}, part, jax.random.fold_in(key, i))
            return aux.collections, (loss, aux.metrics, aux.signals, grads)

        collections, (loss, metrics, signals, grads) = jax.lax.scan(
            one, fixed["collections"], (slices, jnp.arange(parts)))
        mean = lambda tree: jax.tree.map(lambda x: x.mean(0), tree)
        total = jax.tree.map(lambda x: x.sum(0), metrics)
        return (loss.mean(), Aux(total, collections, mean(signals))), mean(grads)
    return whole


def one_classifier(forward: Callable, params: dict, fixed: dict,
                   images: jax.Array) -> dict[str, jax.Array]:
    """The predictions of a model with one output."""
    return {"": forward(params, fixed, images, None)[0]}


def soft_targets(label: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Smoothed labels: int [B], or distributions [B, K] as mixing leaves them -> float32 [B, K],
    `smoothing/K` everywhere and `1 - smoothing` times the label.

    (DeiT smooths before it mixes, which is the same: both are linear.)
    """
    if label.ndim == 1:
        label = jax.nn.one_hot(label, num_classes)
    return optax.smooth_labels(label, smoothing)


def hits(logits: jax.Array, label: jax.Array, k: int = 1) -> jax.Array:
    """float32 [B]: 1 where the label (of a mixed one the likeliest) is among the `k` largest."""
    label = label if label.ndim == 1 else label.argmax(-1)
    own = jnp.take_along_axis(logits, label[:, None], -1)
    # Ties and undefined logits count against the model: neither constants nor NaN may score.
    higher = logits.shape[-1] - 1 - (logits < own).sum(-1)
    return (higher < k).astype(jnp.float32)


def supervised(forward: Callable, phase: Phase, teacher, *,
               label_smoothing: Rate = 0.0) -> Objective:
    """Soft cross-entropy, -sum_k y_k log softmax(z)_k, mean over the batch in float32.

    Labels, mixed or not, are smoothed by `label_smoothing`; a distilled model's outputs share them.
    """
    def loss(params, fixed, batch, key):
        outputs, collections = forward(params, fixed, batch["image"], key)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        target = soft_targets(batch["label"], heads[0].shape[-1], label_smoothing)
        each = sum(optax.softmax_cross_entropy(head, target) for head in heads) / len(heads)
        right = hits(heads[0], batch["label"])
        return each.mean(), Aux({"top1": (right.sum(), right.size)}, collections)
    return Objective(jax.value_and_grad(loss, has_aux=True), one_classifier)


VARIANTS = {"supervised": supervised}
