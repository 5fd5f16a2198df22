"""What the model sees of a clip: some of its frames, evenly spaced, under the same transform."""
from collections.abc import Callable, Sequence
import copy

import numpy as np


def spaced(count: int, frames: int, shift: np.ndarray | float = 0.5) -> np.ndarray:
    """`frames` places of `count`, one in each of as many equal segments: int64 [frames], ascending.

    `floor((i + shift_i) count / frames)` for i from 0 on (temporal segment networks, Wang et al.,
    ECCV 2016): a `shift` of 0.5 is the middle of each segment, a random one of [0, 1) [frames] a
    random place in it. A clip of fewer frames shows some of them again.
    """
    places = np.floor((np.arange(frames) + shift) * count / frames).astype(np.int64)
    return np.minimum(places, count - 1)              # i + shift may be rounded up to i + 1


def train_clip(clip: Sequence, size: int, rng: np.random.Generator, *, frames: int,
               transform: Callable) -> np.ndarray:
    """uint8 [frames, size, size, 3]: a random frame of each segment, every one under the same
    draws of `transform(image, size, rng)`, so in the same box and mirrored or not together."""
    chosen = spaced(len(clip), frames, np.array([rng.random() for _ in range(frames)]))
    return np.stack([transform(clip[i], size, copy.deepcopy(rng)) for i in chosen])


def evaluation_clip(clip: Sequence, size: int, rng: np.random.Generator, *, frames: int,
                    transform: Callable) -> np.ndarray:
    """uint8 [frames, size, size, 3]: the middle frame of each segment, every one under the same
    draws of `transform(image, size, rng)`, where it draws."""
    return np.stack([transform(clip[i], size, copy.deepcopy(rng))
                     for i in spaced(len(clip), frames)])


def image_shape(count: int, frames: int | None, size: int) -> tuple[int, ...]:
    """Of a batch's `image`: [count, size, size, 3], of clips [count, frames, size, size, 3]."""
    return (count, *((frames,) if frames else ()), size, size, 3)
