"""Distillation: SReT takes soft labels alone (as MEAL V2), in DeiT a head follows the teacher."""
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from vit_efficient.engine.teacher import teacher_signal
from vit_efficient.seams.objective import Aux, Objective, hits, one_classifier, soft_targets
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Fraction, Positive, Rate


def soft_label_loss(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Mean over B of -sum_k softmax(teacher/T)_k log_softmax(student/T)_k (SReT's code: no T^2
    factor); [B, K] each -> float32 []."""
    student, teacher = (x.astype(jnp.float32) / temperature for x in (student, teacher))
    return optax.softmax_cross_entropy(student, jax.nn.softmax(teacher)).mean()


def hard_label_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Mean cross-entropy with the teacher's likeliest class; [B, K] each -> float32 []."""
    student, label = student.astype(jnp.float32), teacher.argmax(-1)
    return optax.softmax_cross_entropy_with_integer_labels(student, label).mean()


def tempered_divergence(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """DeiT's soft loss: tau^2 / (B K) sum_bk KL terms of the tempered log-probabilities (its
    losses.py: element mean); [B, K] each -> float32 []."""
    student, teacher = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
                        for x in (student, teacher))
    return (jnp.exp(teacher) * (teacher - student)).sum() * temperature ** 2 / student.size


def head_loss(kind: str, student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """What a distilled model's second head minimises: "hard" or "soft" (`tempered_divergence`)."""
    if kind == "hard":
        return hard_label_loss(student, teacher)
    return tempered_divergence(student, teacher, temperature)


def missing_teacher(teacher: Callable | None, name: str) -> str:
    """What to say where the objective `name` was configured without a teacher, else ""."""
    return "" if teacher else (
        f"objective.name = {name}: needs a teacher, set teacher.workdir to the workdir of its run, "
        "or teacher.init_from to a file and teacher.model to its name in the zoo")


def soft_labels(forward: Callable, phase: Phase, teacher: Callable | None, *,
                temperature: Positive = 1.0) -> Objective:
    """A teacher's soft labels alone, as SReT distills: labels are not read by the loss."""
    def loss(params, fixed, batch, key):
        signal = teacher_signal(teacher, fixed, batch, "logits")
        logits, collections = forward(params, fixed, batch["image"], key)
        right = hits(logits, batch["label"])
        return (soft_label_loss(logits, signal, temperature),
                Aux({"top1": (right.sum(), right.size)}, collections))
    return Objective(jax.value_and_grad(loss, has_aux=True), one_classifier,
                     teachers=("live",), missing=missing_teacher(teacher, "soft_labels"))


def distilled(forward: Callable, phase: Phase, teacher: Callable | None, *,
              label_smoothing: Rate = 0.1, kind: Literal["hard", "soft"] = "hard",
              alpha: Fraction = 0.5, temperature: Positive = 1.0) -> Objective:
    """DeiT's distillation (its losses.py): `(1 - alpha) CE(class head, labels) + alpha term`.

    The term is cross-entropy with the teacher's likeliest class (`hard`) or the tempered divergence
    (`soft`), both on the second output of a distilled model.
    """
    def loss(params, fixed, batch, key):
        signal = teacher_signal(teacher, fixed, batch, "logits")
        (logits, second), collections = forward(params, fixed, batch["image"], key)
        target = soft_targets(batch["label"], logits.shape[-1], label_smoothing)
        base = optax.softmax_cross_entropy(logits, target).mean()
        term = head_loss(kind, second, signal, temperature)
        right = hits(logits, batch["label"])
        return ((1 - alpha) * base + alpha * term,
                Aux({"top1": (right.sum(), right.size), "teacher_loss": (term, 1.0)}, collections))
    return Objective(jax.value_and_grad(loss, has_aux=True), one_classifier,
                     teachers=("live",), missing=missing_teacher(teacher, "distilled"))


VARIANTS = {"soft_labels": soft_labels, "distilled": distilled}
