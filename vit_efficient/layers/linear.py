"""Linear layers whose weights' gradients are written so that every compiler does them well."""
from flax import linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D], kernel [D, H] -> [..., H].

    In the kernel's gradient, x^T c, XLA on a CPU moves the left operand into a transposed copy.
    Here that is the narrower one; differentiation itself always takes c, which is 1.6 times the
    time where D, H are 384, 1536 and 3 times where they are 32, 64.
    """
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return x @ kernel, (x, kernel)


def _product_backward(kept: tuple, change: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    D, H = kernel.shape
    samples = tuple(range(x.ndim - 1))
    over = lambda a, b: jax.lax.dot_general(a, b, ((samples, samples), ((), ())))
    return change @ kernel.T, over(x, change) if D <= H else over(change, x).T


product.defvjp(_product_forward, _product_backward)


def _dot_general(x: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """`product` as Flax calls it, with the axes and the precision of every Dense."""
    return product(x, kernel)


def Dense(width: int, *, use_bias: bool = True, dtype: jnp.dtype = jnp.float32,
          kernel_init: nn.initializers.Initializer,
          bias_init: nn.initializers.Initializer = nn.initializers.zeros,
          name: str | None = None) -> nn.Dense:
    """x [..., D] -> [..., width] in `dtype`, by `product`."""
    return nn.Dense(width, use_bias, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init,
                    dot_general=_dot_general, name=name)
