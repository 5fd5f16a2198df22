"""Layer normalisation with statistics in float32."""
from functools import partial

from flax import linen as nn

# Two passes for the variance: the mean of squares minus the squared mean loses digits where the
# mean is large.
LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)
