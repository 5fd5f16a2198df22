"""Which example stands in which slot of which step, and with which random numbers.

A run that is resumed, or moved to another number of hosts, sees the same images because nothing
here has a state: a slot of a step is computed from (seed, epoch, index) alone.
"""
import numpy as np
from numpy.random.bit_generator import ISeedSequence

from vit_efficient.seams.phases import Position

_ROUNDS = 6


def shuffled(index: np.ndarray, length: int, seed: int, epoch: int) -> np.ndarray:
    """The examples at places `index` of the epoch's random order of range(length); int64 [...].

    A Feistel network over the smallest even number of bits that holds `length`, applied until the
    value is below `length` (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002): a permutation with random access and no memory. Grain's shuffle does the same
    with fewer, weaker rounds, and its neighbours are visibly correlated near 2^16 examples; and
    here the order of a run cannot change with a package's version.
    """
    index = np.asarray(index, np.int64)
    if index.size and not (0 <= index.min() and index.max() < length):
        raise IndexError(f"places {index.min()} to {index.max()} of {length} examples")
    half = np.uint64(max(1, -(-(length - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence((seed, epoch)).generate_state(_ROUNDS, np.uint64)
    value = index.astype(np.uint64).ravel()
    outside = np.arange(value.size)
    while outside.size:
        left, right = value[outside] >> half, value[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        value[outside] = left << half | right
        outside = outside[value[outside] >= length]
    return value.astype(np.int64).reshape(index.shape)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit depends on every bit of `x`; uint64 [n] -> uint64 [n]."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def slot_count(batch_size: int, crops: int) -> int:
    """Images of one step: `batch_size`, rounded up to a whole number of crops of each example."""
    return crops * -(-batch_size // crops)


def examples_at(slots: np.ndarray, position: Position, batch_size: int, length: int,
                seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Example and copy in each of the step's global `slots`: int [b] -> int64 [b], int64 [b].

    Crop-major, as FKD's trainer (arXiv 2112.01528): first one crop of every example, then the
    next one. With repeats, as in repeated augmentation (Hoffer et al., CVPR 2020; DeiT's
    sampler), an example stands that often in a row, and its last copies may fall in the next step.
    `copy` tells the crops and repeats of one example in one pass apart and is 0 in ordinary ones.
    """
    distinct = slot_count(batch_size, position.crops) // position.crops
    crop, place = np.divmod(slots, distinct)
    rank, again = np.divmod(position.first + place, position.repeats)
    return shuffled(rank, length, seed, position.epoch), crop * position.repeats + again


def generator(seed: int, epoch: int, example: int, copy: int) -> np.random.Generator:
    """The random numbers of one image: Philox is keyed, so no two images share a stream and none
    depends on a worker. (The low words of the counter count the draws.)"""
    return np.random.Generator(np.random.Philox(
        _Key(seed, epoch), counter=np.array((0, 0, copy, example), np.uint64)))


class _Key(ISeedSequence):
    """Philox's two words of key, as they are. Given as `key`, they cost more than twice as much:
    NumPy then reads the system's entropy too, which nothing uses."""

    def __init__(self, *words: int):
        self.words = np.array(words, np.uint64)

    def generate_state(self, n_words: int, dtype=np.uint32) -> np.ndarray:
        return self.words
