"""A source of 41 images of noise in five classes, and what makes batches of it."""
import numpy as np

from vit_efficient.data.augment import make_augment
from vit_efficient.data.sources import Arrays
from vit_efficient.seams.phases import Length, constant

RNG = np.random.RandomState(0)
SOURCE = Arrays(RNG.randint(0, 256, (41, 8, 8, 3), np.uint8), RNG.randint(0, 5, 41),
                tuple("abcde"), "noise")
AUGMENT = make_augment()
PHASES = constant(Length(41, 8, 3), None)
