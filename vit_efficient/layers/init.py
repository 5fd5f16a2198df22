"""How a linear layer's weights start: functions of `fan_in`, giving the initialisers of (kernel,
bias)."""
from flax import linen as nn

from vit_efficient.layers.patch import torch_conv_init

Initializers = tuple[nn.initializers.Initializer, nn.initializers.Initializer]


def small_normal(fan_in: int) -> Initializers:
    """Normal with deviation 0.02, biases zero: what most vision transformers take."""
    return nn.initializers.normal(0.02), nn.initializers.zeros


def torch_default(fan_in: int) -> Initializers:
    """torch's own for `nn.Linear`: uniform in +-1/sqrt(fan_in), the biases too."""
    return torch_conv_init(fan_in), torch_conv_init(fan_in)
