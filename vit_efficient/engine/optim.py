"""AdamW and SGD with the papers' decay groups, and the learning rates that the papers used.

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
    size. They are apart so that the rate follows the step number also after a skipped step.
    `slower` are patterns of parameters' paths and the rates of those that match, the first pattern
    first."""
    transform: optax.GradientTransformation
    learning_rate: Callable
    slower: tuple[tuple[str, Callable], ...] = ()

    @property
    def init(self) -> Callable:
        return self.transform.init


def decays(no_decay: tuple[str, ...], kind: str = "matrices") -> Callable[[dict], dict]:
    """Which parameters decay: those whose last component is not in `no_decay`, of two or more axes
    (`matrices`, in every ImageNet recipe) or of any number (`all`)."""
    def mask(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (kind == "all" or leaf.ndim > 1) and path[-1].key not in no_decay,
            params)
    return mask


def frozen(trained: tuple[str, ...]) -> Callable[[dict], dict]:
    """Which parameters keep their values: those whose path `blocks_0/attn/qkv/kernel` no pattern of
    `trained` matches, where `*` stands for anything. ValueError for a pattern without a match."""
    def mask(params: dict) -> dict:
        paths = list(traverse_util.flatten_dict(params, sep="/"))
        moved = {path for pattern in trained for path in _matches("trained", pattern, paths)}
        return traverse_util.unflatten_dict({path: path not in moved for path in paths}, sep="/")
    return mask


def _matches(key: str, pattern: str, paths: list[str]) -> list[str]:
    """The paths that match; ValueError where none does."""
    found = fnmatch.filter(paths, pattern)
    if not found:
        raise ValueError(f"optim.{key}: no parameter matches {pattern}, the paths are as "
                         f"{', '.join(paths[:3])} and {paths[-1]}")
    return found


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


def make_optimizer(length: Length, exempt: tuple[str, ...], *, lr: Positive,
                   lr_batch: Count | None = None,
                   schedule: Literal["cosine", "official"] = "cosine",
                   warmup_epochs: NonNegative = 0.0, warmup_lr: NonNegative = 0.0,
                   min_lr: NonNegative = 0.0, lag: Whole = 1, halved_epochs: Whole = 0,
                   cooldown_epochs: Whole = 0, weight_decay: NonNegative = 0.05, b1: Rate = 0.9,
                   b2: Rate = 0.999, eps: Positive = 1e-8, clip_norm: Positive | None = None,
                   trained: tuple[str, ...] = (), method: Literal["adamw", "sgd"] = "adamw",
                   momentum: Rate = 0.9, decay: Literal["matrices", "all"] = "matrices",
                   no_decay: tuple[str, ...] | None = None,
                   slower: tuple[tuple[str, Positive], ...] = ()) -> Optimizer:
    """AdamW or SGD; gradients are clipped to a global norm first.

    Args:
      length, exempt: of the run, and the model's `no_decay`.
      lr ... cooldown_epochs: of the learning rate, see `learning_rate`.
      weight_decay: of AdamW decoupled, times the learning rate; of SGD added to the gradient before
        the momentum, as in torch.
      b1, b2, eps: AdamW's.
      trained: patterns of the only parameters that move, as ("*/attn/*", "head/*", "pos_embed"),
        DeiT III's fine-tuning of the attention alone; () trains all.
      method, momentum: "sgd" is torch's, with this momentum and no Nesterov; AdamW reads none.
      decay, no_decay: which parameters decay: those of two or more axes ("matrices") or "all", but
        for last components of paths, by default the model's own.
      slower: patterns of paths with factors of the peak rate (the floor `min_lr` stays), as
        (("*/head/*", 1.0), ("*", 0.01)): of several that match the first counts.
    Raises:
      ValueError: what the rates do not allow, or `momentum` for AdamW.
    """
    rates = dict(lr_batch=lr_batch, schedule=schedule, warmup_epochs=warmup_epochs,
                 warmup_lr=warmup_lr, min_lr=min_lr, lag=lag, halved_epochs=halved_epochs,
                 cooldown_epochs=cooldown_epochs)
    decayed = optax.add_decayed_weights(
        weight_decay, decays(exempt if no_decay is None else no_decay, decay))
    if method == "sgd":
        steps = decayed, optax.trace(momentum)
    elif momentum != 0.9:
        raise ValueError(f"optim.momentum = {momentum:g}: optim.method = adamw does not read it, "
                         "its betas are optim.b1 and optim.b2")
    else:
        steps = optax.scale_by_adam(b1, b2, eps), decayed
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    transform = optax.chain(clip, *steps)
    if trained:
        stopped = optax.masked(optax.set_to_zero(), frozen(trained))
        transform = optax.chain(stopped, transform, stopped)
    return Optimizer(transform, learning_rate(length, lr=lr, **rates), tuple(
        (pattern, learning_rate(length, lr=factor * lr, **rates)) for pattern, factor in slower))


def apply(optimizer: Optimizer, gradients: dict, opt_state: tuple, params: dict, step: jax.Array):
    """One update at `step`: `(params, opt_state)` after it."""
    updates, opt_state = optimizer.transform.update(gradients, opt_state, params)
    rates = _rates(optimizer, params, step)
    moved = jax.tree.map(lambda w, u, rate: w - rate * u.astype(w.dtype), params, updates, rates)
    return moved, opt_state


def _rates(optimizer: Optimizer, params: dict, step: jax.Array) -> dict:
    """The learning rate of every parameter at `step`, float32 [] each."""
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    slower = [(set(_matches("slower", pattern, paths)), rate(step))
              for pattern, rate in optimizer.slower]
    usual = optimizer.learning_rate(step)

    def of(path: tuple, leaf: jax.Array) -> jax.Array:
        name = "/".join(key.key for key in path)
        return next((rate for names, rate in slower if name in names), usual)
    return jax.tree_util.tree_map_with_path(of, params)
