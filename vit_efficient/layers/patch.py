"""Convolutions that cut an image into tokens, initialised as torch's `nn.Conv2d`.

`PatchEmbed` is the stem of DeiT, DVT and SViTE; As-ViT and SReT build theirs of `conv`. A grid
[B, h, w, D] becomes `tokens` [B, h * w, D] row by row, as in every official model.
"""
from flax import linen as nn
import jax
import jax.numpy as jnp


def torch_conv_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), torch's default for a convolution's weight and bias alike."""
    bound = fan_in ** -0.5
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)
    return init


def conv(features: int, kernel: int, stride: int, padding: tuple[int, int] = (0, 0),
         dilation: int = 1, channels: int = 3, dtype: jnp.dtype = jnp.float32,
         name: str = "proj") -> nn.Conv:
    """A square convolution with bias: images [B, H, W, channels] -> [B, H', W', features]."""
    init = torch_conv_init(channels * kernel ** 2)
    return nn.Conv(features, (kernel, kernel), (stride, stride), (padding, padding),
                   kernel_dilation=dilation, kernel_init=init, bias_init=init, dtype=dtype,
                   name=name)


class PatchEmbed(nn.Module):
    """Images [B, H, W, 3] -> tokens [B, N, D] in `dtype`, row by row, by one convolution."""
    width: int
    kernel: int
    stride: int
    padding: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        pad = (self.padding, self.padding)
        return tokens(conv(self.width, self.kernel, self.stride, pad, dtype=self.dtype)(
            images.astype(self.dtype)))


def tokens(grid: jax.Array) -> jax.Array:
    """[B, h, w, D] -> [B, h * w, D], row by row."""
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])
