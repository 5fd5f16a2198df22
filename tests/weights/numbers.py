"""Official state_dicts of random numbers."""
import numpy as np

from vit_efficient.weights import interop

NUMBERS = np.random.default_rng(0).standard_normal(2 ** 20, np.float32)


def filled(model) -> dict[str, np.ndarray]:
    """An official state_dict of random bits, finite; entries of one array are equal, counters
    large."""
    arrays, layout = {}, interop.layout(model)
    for i, place in enumerate(layout.values()):
        if place.path not in arrays:
            numbers = np.resize(np.roll(NUMBERS[:2 ** 16 + i], i), place.shape)
            arrays[place.path] = (2 ** 23 + i if place.dtype.kind == "i" else numbers)
    return {name: np.asarray(arrays[place.path], place.dtype) for name, place in layout.items()}


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a)
