"""Weights for tiny models that no test has to compile."""
import jax
import numpy as np

from vit_efficient.weights import interop


def filled(model, seed: int = 0) -> dict:
    """Parameters far from any start, so that every net says something else: noise about 1 in the
    scales of norms, about 0 elsewhere; numpy, drawn without running an initialiser."""
    rng = np.random.default_rng(seed)
    return jax.tree.map_with_path(
        lambda path, x: np.float32((path[-1].key == "scale") + 0.2 * rng.normal(size=x.shape)),
        interop.shapes(model)["params"])
