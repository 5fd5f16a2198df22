"""AdamW with the papers' decay groups, and the learning rates that the papers used.

`engine/assemble.py` calls `make_optimizer` with the config group `optim`; `engine/step.py` calls
`apply`. Read `make_optimizer` first; the two families of learning rates, ours (`cosine`) and the
authors' trainers' (`official`), stand above it.
"""
from collections.abc import Callable
import fnmatch
from typing import Literal, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from vit_efficient.seams.phases import Length
from vit_efficient.settings.values import Count, NonNegative, Positive, Rate, Whole


class Optimizer(NamedTuple):
    """`transform` gives the direction of an update and `learning_rate(step) -> float32 []` its
    size. They are apart so that the rate follows the step number also after a skipped step."""
    transform: optax.GradientTransformation
    learning_rate: Callable

    @property
    def init(self) -> Callable:
        return self.transform.init


def decays(no_decay: tuple[str, ...]) -> Callable[[dict], dict]:
    """Which parameters decay, in every recipe: those of two or more axes not in `no_decay`."""
    def mask(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.ndim > 1 and path[-1].key not in no_decay, params)
    return mask


def frozen(trained: tuple[str, ...]) -> Callable[[dict], dict]:
    """Which parameters keep their values: those whose path `blocks_0/attn/qkv/kernel` no pattern of
    `trained` matches, where `*` stands for anything. ValueError for a pattern without a match."""
    def mask(params: dict) -> dict:
        paths = list(traverse_util.flatten_dict(params, sep="/"))
        moving = {pattern: fnmatch.filter(paths, pattern) for pattern in trained}
        for pattern, found in moving.items():
            if not found:
                raise ValueError(f"optim.trained: no parameter matches {pattern}, the paths are as "
                                 f"{', '.join(paths[:3])} and {paths[-1]}")
        moved = set().union(*moving.values())
        return traverse_util.unflatten_dict({path: path not in moved for path in paths}, sep="/")
    return mask


def cosine(peak: float, total: float, warmup: float, warmup_lr: float, min_lr: float) -> Callable:
    """Cosine over `total` steps, with a linear ramp up to its value at the end of the warm-up.

    `cos(t) = min + (peak - min) (1 + cos(pi t / total)) / 2`, below the warm-up
    `warmup_lr + (cos(warm) - warmup_lr) t / warm`. Continuous over the steps. The form of
    TensorFlow's Model Garden, which As-ViT takes here: its own trainer was not published.
    """
    def at(t):
        t = jnp.asarray(t, jnp.float32)
        left = jnp.clip((total - jnp.maximum(t, warmup)) / total, 0, 1)
        # (1 + cos(pi t / total)) / 2, whose sum loses its digits near the end
        curve = min_lr + (peak - min_lr) * jnp.sin(jnp.pi / 2 * left) ** 2
        return jnp.where(t < warmup, warmup_lr + (curve - warmup_lr) * t / max(warmup, 1), curve)
    return at


def official(peak: float, epochs: float, warmup: float, warmup_lr: float, min_lr: float, *,
             lag: int = 1, halved: int = 0) -> Callable:
    """The rate of epoch e in DeiT's trainer (timm 0.3.2's CosineLRScheduler), constant within it:
    `g(e - lag)` with

        g(t) = warmup_lr + t (peak - warmup_lr) / warmup                 t < warmup
               min_lr + (peak - min_lr) (1 + cos(pi t / epochs)) / 2     t < epochs, no shift
               min_lr                                                    after (DVT's cool-down)

    The trainers of DeiT, SReT and SViTE step their schedule after an epoch with that epoch's own
    number: epoch e runs at g(e - 1), epoch 0 at the starting value (`lag=1`); DVT's does not
    (`lag=0`). Scala's halves g(t) for t < `halved` (10), not the starting value.
    """
    def g(t):
        ramp = warmup_lr + t * (peak - warmup_lr) / max(warmup, 1)
        curve = min_lr + 0.5 * (peak - min_lr) * (1 + jnp.cos(jnp.pi * t / epochs))
        value = jnp.where(t < warmup, ramp, jnp.where(t < epochs, curve, min_lr))
        return jnp.where(t < halved, value / 2, value)

    start = warmup_lr if warmup else peak

    def at(epoch):
        t = jnp.asarray(epoch, jnp.float32) - lag
        return jnp.where(t < 0, start, g(t))
    return at


def learning_rate(length: Length, *, lr: Positive, lr_batch: Count | None = None,
                  schedule: Literal["cosine", "official"] = "cosine",
                  warmup_epochs: NonNegative = 0.0, warmup_lr: NonNegative = 0.0,
                  min_lr: NonNegative = 0.0, lag: Whole = 1, halved_epochs: Whole = 0,
                  cooldown_epochs: Whole = 0) -> Callable:
    """step -> learning rate, float32 []; see `cosine` and `official` for the two forms.

    `lr` is the peak, for a batch of `lr_batch` images (then scaled linearly to the run's batch) or
    as it stands. `lag`, `halved_epochs` and `cooldown_epochs` (run at `min_lr` at the end, DVT)
    belong to the official form.
    """
    epochs = length.epochs - cooldown_epochs
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"optim.warmup_epochs = {warmup_epochs:g}: must be below the {epochs:g} "
                         f"epochs of the cosine (epochs = {length.epochs:g}, "
                         f"optim.cooldown_epochs = {cooldown_epochs})")
    peak = lr * length.batch_size / lr_batch if lr_batch else lr
    if schedule == "official":
        rate = official(peak, epochs, warmup_epochs, warmup_lr, min_lr,
                        lag=lag, halved=halved_epochs)
        return lambda step: rate(step // length.steps_per_epoch)
    if (lag, halved_epochs, cooldown_epochs) != (1, 0, 0):
        raise ValueError("optim.lag, optim.halved_epochs and optim.cooldown_epochs are parts of "
                         "the authors' per-epoch rates: they need optim.schedule = \"official\"")
    return cosine(peak, length.total, warmup_epochs * length.steps_per_epoch, warmup_lr, min_lr)


def make_optimizer(length: Length, no_decay: tuple[str, ...], *, lr: Positive,
                   lr_batch: Count | None = None,
                   schedule: Literal["cosine", "official"] = "cosine",
                   warmup_epochs: NonNegative = 0.0, warmup_lr: NonNegative = 0.0,
                   min_lr: NonNegative = 0.0, lag: Whole = 1, halved_epochs: Whole = 0,
                   cooldown_epochs: Whole = 0, weight_decay: NonNegative = 0.05, b1: Rate = 0.9,
                   b2: Rate = 0.999, eps: Positive = 1e-8, clip_norm: Positive | None = None,
                   trained: tuple[str, ...] = ()) -> Optimizer:
    """AdamW: decay decoupled, times the learning rate; gradients clipped to a global norm first.

    `trained` are patterns of the only parameters that move, as ("*/attn/*", "head/*", "pos_embed"),
    DeiT III's fine-tuning of the attention alone; () trains all.
    """
    rate = learning_rate(
        length, lr=lr, lr_batch=lr_batch, schedule=schedule, warmup_epochs=warmup_epochs,
        warmup_lr=warmup_lr, min_lr=min_lr, lag=lag, halved_epochs=halved_epochs,
        cooldown_epochs=cooldown_epochs)
    adamw = optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, decays(no_decay)))
    if not trained:
        return Optimizer(adamw, rate)
    still = optax.masked(optax.set_to_zero(), frozen(trained))
    return Optimizer(optax.chain(still, adamw, still), rate)


def apply(optimizer: Optimizer, gradients: dict, opt_state: tuple, params: dict, step: jax.Array):
    """One update at `step`: `(params, opt_state)` after it."""
    updates, opt_state = optimizer.transform.update(gradients, opt_state, params)
    rate = optimizer.learning_rate(step)
    return jax.tree.map(lambda w, u: w - rate * u.astype(w.dtype), params, updates), opt_state
