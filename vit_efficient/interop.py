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

    Raises ValueError with every entry that is missing, not expected, of another shape, or unequal
    to another entry of the same array.
    """
    like = traverse_util.flatten_dict(shapes(model))
    places = {path: official_names(model, path) for path in like}
    expected = {name for names_ in places.values() for name in names_}
    problems = [f"{name}: missing" for name in expected - state_dict.keys()]
    problems += [f"{name}: not expected" for name in state_dict.keys() - expected]
    values = {}
    for path, (first, *others) in places.items():
        if first not in state_dict:
            continue
        values[path] = names.from_official(path, np.asarray(state_dict[first]))
        if values[path].shape != like[path].shape:
            problems.append(f"{first}: shape {values[path].shape}, must be {like[path].shape}")
        problems += [f"{name}: must equal {first}, they are one array in the model"
                     for name in others if name in state_dict
                     and not np.array_equal(state_dict[name], state_dict[first])]
    if problems:
        raise ValueError("the state_dict does not fit the model:\n  "
                         + "\n  ".join(sorted(problems)))
    return traverse_util.unflatten_dict(values)


def to_torch(model: nn.Module, variables: dict) -> dict[str, np.ndarray]:
    """The official state_dict of the model's variables, numpy arrays in torch's layout, in the
    file's order where the model tells it."""
    state_dict = {name: names.to_official(path, np.asarray(value))
                  for path, value in traverse_util.flatten_dict(variables).items()
                  for name in official_names(model, path)}
    order = getattr(model, "order", None)
    if order is None:
        return state_dict
    return {name: state_dict[name]
            for name in sorted(state_dict, key=lambda name: names.sort_key(name, order))}


def official_names(model: nn.Module, path: tuple[str, ...]) -> tuple[str, ...]:
    """All names that the array at `path` (collection first) has in the model's official files."""
    if hasattr(model, "official_names"):
        return model.official_names(path[1:])
    return (names.official(path[1:]),)
