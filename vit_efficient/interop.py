"""The authors' state_dicts <-> our variables, by the one rule of `names.py`."""
from flax import linen as nn, traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient import names


def shapes(model: nn.Module) -> dict:
    """Shapes and dtypes of the model's variables; nothing is computed."""
    side = model.image_size
    return jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))


def from_torch(model: nn.Module, state_dict: dict[str, np.ndarray]) -> dict:
    """The model's variables with the weights of an official state_dict.

    Raises ValueError with every entry that is missing, not expected or of another shape.
    """
    like = traverse_util.flatten_dict(shapes(model))
    places = {names.official(path[1:]): path for path in like}
    problems = [f"{name}: missing" for name in places.keys() - state_dict.keys()]
    problems += [f"{name}: not expected" for name in state_dict.keys() - places.keys()]
    values = {}
    for name in places.keys() & state_dict.keys():
        path = places[name]
        values[path] = names.from_official(path, np.asarray(state_dict[name]))
        if values[path].shape != like[path].shape:
            problems.append(f"{name}: shape {values[path].shape}, must be {like[path].shape}")
    if problems:
        raise ValueError("the state_dict does not fit the model:\n  "
                         + "\n  ".join(sorted(problems)))
    return traverse_util.unflatten_dict(values)


def to_torch(model: nn.Module, variables: dict) -> dict[str, np.ndarray]:
    """The official state_dict of the model's variables, numpy arrays in torch's layout and in the
    order of the official file."""
    flat = traverse_util.flatten_dict(variables)
    return {names.official(path[1:]): names.to_official(path, np.asarray(flat[path]))
            for path in sorted(flat, key=lambda path: names.rank(path[1:], model.order))}
