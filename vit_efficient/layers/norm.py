"""Layer normalisation with statistics in float32."""
from functools import partial

from flax import linen as nn

# Two passes for the variance: mean of squares minus squared mean loses digits where it is large.
LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)
