"""Weights and inputs that a fixture names and does not store, from numpy's frozen generator."""
import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The state_dict entry `name` in torch's layout, float32; a counter of batches is int64 0."""
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if last == "running_var":
        noise = 1 + 0.1 * np.abs(noise)
    elif len(shape) <= 1:                       # scales near one, biases near zero
        near_one = last == "weight" or np.prod(shape) == 1
        noise = 1.0 + 0.1 * noise if near_one else 0.1 * noise
    elif shape[0] == 1 and len(shape) > 2:      # class tokens, position tables
        noise = 0.2 * noise
    else:                                       # matrices and convolutions
        noise = noise / np.sqrt(np.prod(shape[1:]))
    return np.asarray(noise, np.float32)


def image(batch: int = 2, size: int = 224, seed: int = 0) -> np.ndarray:
    """Normalised images, float32 [batch, size, size, 3]."""
    noise = np.random.RandomState(seed).standard_normal((batch, size, size, 3))
    return noise.astype(np.float32)
