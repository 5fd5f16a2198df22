"""SViTE+'s token selector: which tokens of an image count, learnt by a straight-through top-k.

SViTE (NeurIPS 2021), the authors' code. Noise is an input here: the model draws it.
"""
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp


class Selection(NamedTuple):
    """What a selector decides, each [B, N]: `log_prob` and `soft` float32, `topk` and `mask` (topk
    and the class token) bool, `weights` float32, the mask with the gradient of `soft`."""
    log_prob: jax.Array
    soft: jax.Array
    topk: jax.Array
    mask: jax.Array
    weights: jax.Array


def largest(scores: jax.Array, count: int) -> jax.Array:
    """bool [B, N], True at the `count` largest of each row; of equal ones the first."""
    # The rank of each entry. A threshold would take all of several equal scores.
    rank = jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1, stable=True)
    return rank < count


def select(log_prob: jax.Array, noise: jax.Array, tau: jax.Array | float, token_number: int, *,
           exact: bool = False) -> Selection:
    """Gumbel top-k of log-probabilities [B, N]: `s = softmax((l + G) / tau)`, 1 on the
    `token_number` largest, with the gradient of s.

    The class token, at 0, always counts: `exact` makes it one of the `token_number`, else it may be
    one more, as in the official code.
    """
    scores = log_prob + noise
    soft = nn.softmax(scores / tau)
    is_class = jnp.arange(scores.shape[-1]) == 0
    # Of the scores, not of `soft`: at a low tau many of its entries underflow to equal zeros.
    topk = largest(jnp.where(is_class & exact, jnp.inf, scores), token_number)
    through = topk + (soft - jax.lax.stop_gradient(soft))
    return Selection(log_prob, soft, topk, topk | is_class, jnp.where(is_class, 1.0, through))


def gather(x: jax.Array, mask: jax.Array, count: int) -> jax.Array:
    """The `count` tokens of each image that its mask [B, N] keeps, in order: [B, N, D] -> [B,
    count, D]."""
    kept = jnp.argsort(~mask, axis=-1, stable=True)[:, :count]
    return jnp.take_along_axis(x, kept[..., None], axis=1)


class Selector(nn.Module):
    """One linear map scores the tokens: x [B, N, D], noise [B, N] -> `Selection`, in float32
    whatever dtype x has. Sows it as `selection`.

    `gumbel/kernel` [D, 1] is `gumbel.weight` of the official files.
    """
    token_number: int
    exact: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array, tau: jax.Array) -> Selection:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], 1))
        bias = self.param("bias", nn.initializers.zeros, (1,))
        scores = jnp.einsum("bnd,do->bn", x.astype(jnp.float32), kernel, precision="highest") + bias
        made = select(nn.log_softmax(scores), noise, tau, self.token_number, exact=self.exact)
        self.sow("intermediates", "selection", made)
        return made
