"""The parts of SReT (ECCV 2022): stem, sliced attention, the shared block, the unshared MLP (NLL),
pooling, and a stage, which applies every block several times in a row with the same weights.

As in the authors' code (see models.py). Parameters carry the official names.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.attention import Attention
from vit_efficient.layers.blocks import drop_path
from vit_efficient.layers.init import torch_default
from vit_efficient.layers.mlp import Mlp
from vit_efficient.layers.norm import BatchNorm, LayerNorm
from vit_efficient.layers.patch import conv, torch_conv_init

EPSILON = 1e-6


class Drops(NamedTuple):
    """Dropout rates: of linear layers' outputs and hidden channels, of attention weights."""
    drop: float = 0.0
    attn_drop: float = 0.0


class Stem(nn.Module):
    """Images [B, R, R, 3] -> grid [B, ceil(R/8), ceil(R/8), C]: three convolutions of stride 2 with
    a zero on all sides, each with a batch norm and a ReLU."""
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for k, width in enumerate((self.width // 2, self.width, self.width), 1):
            x = conv(width, 3, 2, (1, 1), channels=x.shape[-1], dtype=self.dtype,
                     name=f"conv{k}")(x)
            x = nn.relu(BatchNorm(dtype=self.dtype, name=f"bn{k}")(x, train))
        return x


class Scalar(nn.Module):
    """A learnable coefficient of a residual sum (LRC), float32 [1], from one."""

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("bias", nn.initializers.ones, (1,))


def sliced(attention: Callable, x: jax.Array, groups: int,
           permutation: jax.Array | None = None) -> jax.Array:
    """`attention` within `groups` runs of consecutive tokens: x [B, N, C] -> [B, N, C].

    `permutation` int32 [N] mixes the tokens before they are cut into runs; the result is put back
    in order.
    """
    take = lambda x, order: x.at[:, order].get(unique_indices=True, mode="promise_in_bounds")
    B, N, C = x.shape
    if permutation is not None:
        x = take(x, permutation)
    out = attention(x.reshape(B, groups, N // groups, C)).reshape(B, N, C)
    return out if permutation is None else take(out, jnp.argsort(permutation))


class Block(nn.Module):
    """Sliced attention and an MLP, with learnable coefficients: tokens [B, N, C] -> [B, N, C].
    The recursion applies one block several times: everything in it is shared."""
    num_heads: int
    mlp_ratio: float
    drops: Drops
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, groups: int, permutation: jax.Array | None,
                 rate: float | jax.Array, train: bool) -> jax.Array:
        norm = partial(LayerNorm, EPSILON, dtype=self.dtype)
        a1, a2, a3, a4 = (Scalar(name=f"coefficient{k}")().astype(self.dtype)
                          for k in range(1, 5))
        attention = Attention(self.num_heads, dtype=self.dtype, initializers=torch_default,
                              attn_drop=self.drops.attn_drop, drop=self.drops.drop, name="attn")
        out = sliced(partial(attention, train=train), norm(name="norm1")(x), groups, permutation)
        x = a1 * x + a2 * drop_path(self, out, rate, train)
        mlp = Mlp(hidden=int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype,
                  initializers=torch_default, drop=self.drops.drop, name="mlp")
        return a3 * x + a4 * drop_path(self, mlp(norm(name="norm2")(x), train), rate, train)


class Nonlinear(nn.Module):
    """The layer after each pass of a block, never shared (NLL): tokens [B, N, C] -> [B, N, C].
    It has no stochastic depth."""
    mlp_ratio: float
    drops: Drops
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        b1, b2 = (Scalar(name=f"coefficient{k}")().astype(self.dtype) for k in (1, 2))
        normed = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        mlp = Mlp(hidden=int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype,
                  initializers=torch_default, drop=self.drops.drop, name="mlp")
        return b1 * x + b2 * mlp(normed, train)


class Pool(nn.Module):
    """Between stages: grid [B, g, g, C] -> [B, ceil(g/2), ceil(g/2), width], each channel by itself
    giving `width / C`."""
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = torch_conv_init(9)
        return nn.Conv(self.width, (3, 3), (2, 2), ((1, 1), (1, 1)), kernel_init=init,
                       bias_init=init, feature_group_count=x.shape[-1], dtype=self.dtype,
                       name="conv")(x)


def passes(blocks: Sequence[Callable], nonlinears: Sequence[Callable], groups: Sequence[int],
           x: jax.Array, permutations: jax.Array | None, rate: float | jax.Array,
           train: bool) -> jax.Array:
    """One distinct block's passes, each followed by its own NLL: tokens [B, N, C] -> [B, N, C].

    `blocks` are the same weights once a pass. Passes after the first with more than one group use
    the rows of `permutations` [P, N] in turn; `None` leaves the tokens in their order.
    """
    drawn = iter(() if permutations is None else permutations)
    for i, (block, nonlinear, count) in enumerate(zip(blocks, nonlinears, groups)):
        x = block(x, count, next(drawn, None) if i and count > 1 else None, rate, train)
        x = nonlinear(x, train)
    return x


class Stage(nn.Module):
    """Distinct blocks, one a rate, each in `len(groups)` passes: tokens [B, N, C] -> [B, N, C].

    In the list `blocks` of the official files every pass has two places, the block and its NLL; a
    block is stored at its first. `scan` compiles one distinct block with its passes instead of all,
    `remat` computes them again in the backward pass.
    """
    num_heads: int
    mlp_ratio: float
    np_mlp_ratio: float
    groups: tuple[int, ...]
    rates: tuple[float, ...]
    drops: Drops
    scan: bool
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, permutations: jax.Array | None, train: bool) -> jax.Array:
        """`permutations` int32 [distinct blocks, P, N], or `None`."""
        loops, count = len(self.groups), len(self.rates)
        block = dict(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, drops=self.drops,
                     dtype=self.dtype)
        nonlinear = dict(mlp_ratio=self.np_mlp_ratio, drops=self.drops, dtype=self.dtype)
        names = [[f"blocks_{2 * (r * loops + i) + odd}" for odd, places in ((0, 1), (1, loops))
                  for i in range(places)] for r in range(count)]
        if self.scan and count > 1 and not self.is_initializing():
            return self._scanned(x, permutations, train, names, Block(**block, parent=None),
                                 Nonlinear(**nonlinear, parent=None))
        remat = self.remat and not self.is_initializing()
        make_block = nn.remat(Block, static_argnums=(2, 4, 5)) if remat else Block
        make_nonlinear = nn.remat(Nonlinear, static_argnums=(2,)) if remat else Nonlinear
        for r, (rate, (first, *others)) in enumerate(zip(self.rates, names)):
            x = passes([make_block(**block, name=first)] * loops,
                       [make_nonlinear(**nonlinear, name=name) for name in others], self.groups, x,
                       None if permutations is None else permutations[r], rate, train)
        return x

    def _scanned(self, x: jax.Array, permutations: jax.Array | None, train: bool,
                 names: list[list[str]], block: Block, nonlinear: Nonlinear) -> jax.Array:
        """The stage with the weights of all distinct blocks stacked: one is compiled."""
        loops, weights = len(self.groups), self.variables["params"]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves),
                               *([weights[name] for name in row] for row in names))
        keys = None
        if train and (any(self.rates) or any(self.drops)):
            keys = jax.random.split(self.make_rng("dropout"), (len(names), 2 * loops))

        def body(x, inputs):
            (shared, *others), permutation, rate, keys = inputs
            rngs = [{} if keys is None else {"dropout": keys[i]} for i in range(2 * loops)]
            apply = lambda module, weights, rngs: partial(
                module.apply, {"params": weights}, rngs=rngs)
            return passes([apply(block, shared, rngs[i]) for i in range(loops)],
                          [apply(nonlinear, w, k) for w, k in zip(others, rngs[loops:])],
                          self.groups, x, permutation, 0.0 if rate is None else rate, train), None

        body = jax.checkpoint(body, prevent_cse=False) if self.remat else body
        rates = jnp.array(self.rates) if any(self.rates) else None
        return jax.lax.scan(body, x, (stacked, permutations, rates, keys))[0]
