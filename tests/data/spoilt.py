"""A source of 40 images with bad records among them, and its batches."""
import numpy as np

from vit_efficient.data.augment import make_augment
from vit_efficient.data.badrecords import BadImage
from vit_efficient.data.batches import EvaluationBatches, Share, TrainBatches
from vit_efficient.data.sources import Arrays
from vit_efficient.seams.phases import Length, constant

RNG = np.random.RandomState(0)
IMAGES, LABELS = RNG.randint(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40)
TRAIN = dict(crop="resize", flip=0.0)


class Spoilt(Arrays):
    """Examples whose numbers are in `bad` hold no image."""

    def __init__(self, bad, allowed):
        super().__init__(IMAGES, LABELS, tuple(map(str, LABELS)), "spoilt")
        self.bad, self.max_bad_records = set(bad), allowed

    def __getitem__(self, i):
        if i in self.bad:
            raise BadImage(f"example {i}: no readable image")
        return super().__getitem__(i)


def train(source, share=Share()):
    return TrainBatches(source, make_augment(**TRAIN).train, constant(Length(40, 8, 3), None), 8, 8,
                        share, 3, 0)


def evaluation(source, share=Share()):
    return EvaluationBatches(source, make_augment(**TRAIN, eval_crop=1.0).evaluate, 8, 16, share)
