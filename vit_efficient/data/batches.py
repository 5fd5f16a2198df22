"""The batches of a run, and of an evaluation, as sequences on the host: batch i is computed from i.

So a resumed run needs no iterator's state, and it does not matter which thread or worker process
prepares a batch. `data/loader.py` runs ahead through such a sequence and puts batches on the
devices. A process computes only its share of a batch, the rows that its devices hold. Beside the
arrays a batch has `bad`, the bad records that it met: why by example.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from vit_efficient.data import order
from vit_efficient.data.badrecords import BadImage, substitutes
from vit_efficient.data.frames import evaluation_clip, image_shape, train_clip
from vit_efficient.data.sources import Source
from vit_efficient.data.stored import Stored
from vit_efficient.seams.phases import Phases


class Share(NamedTuple):
    """The rows of a batch that one process loads: the `parts`, ascending, of `of` equal ones."""
    parts: tuple[int, ...] = (0,)
    of: int = 1

    def rows(self, count: int) -> np.ndarray:
        """The process's rows of a batch of `count` images, a multiple of `of`: int64 [b]."""
        width = count // self.of
        return (np.array(self.parts)[:, None] * width + np.arange(width)).ravel()


def share_of(sharding: jax.sharding.Sharding) -> Share:
    """What this process's devices hold of a batch under `sharding`, in the global order.

    Asked of the sharding and not of the process's number: a mesh may order devices by their wiring.
    """
    count = len(sharding.device_set)
    width = sharding.shard_shape((count,))[0]
    mine = sharding.addressable_devices_indices_map((count,)).values()
    return Share(tuple(sorted({(rows.start or 0) // width for rows, in mine})), count // width)


class TrainBatches:
    """Steps `start` to the end of a run, each a dict of host arrays: `image` uint8 [b, S, S, 3], of
    clips [b, F, S, S, 3], `label` int32 [b], `weight` float32 [b] of ones, where b is the process's
    share of the step's images; with a stored teacher `teacher`, its rows, float16 [b, ...]."""

    def __init__(self, source: Source, transform: Callable, phases: Phases, batch_size: int,
                 image_size: int, share: Share, seed: int, start: int,
                 stored: Stored | None = None):
        if batch_size % share.of:
            raise ValueError(f"batch_size = {batch_size}: must be a multiple of {share.of}, "
                             "the parts that the mesh cuts a batch into")
        self.source, self.share, self.stored = source, share, stored
        self.transform = _of_example(transform, train_clip, source.frames)
        self.batch_size, self.image_size = batch_size, image_size
        self.seed, self.start, self.total = seed, start, phases.total
        # Not `phases` itself: a worker process must be able to unpickle this, and reads no scalars.
        self.phase_at, self.position = phases.phase_at, phases.position

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def __getitem__(self, i: int) -> dict[str, np.ndarray | dict[int, str]]:
        step = self.start + i
        position = self.position(step)
        size = dict(self.phase_at(step).data).get("image_size", self.image_size)
        count = order.slot_count(self.batch_size, position.crops)
        if count % self.share.of:
            raise ValueError(f"batch_size = {self.batch_size}: {position.crops} crops of each "
                             f"image make steps of {count}, which must be a multiple of "
                             f"{self.share.of}, the parts of the mesh")
        examples, copies = order.examples_at(self.share.rows(count), position, self.batch_size,
                                             len(self.source), self.seed)
        batch = _empty(len(examples), self.source.frames, size)
        batch["weight"][:] = 1
        if self.stored:
            batch["teacher"] = np.empty((len(examples), *self.stored.shape), np.float16)
        for row, (example, copy) in enumerate(zip(examples.tolist(), copies.tolist())):
            key = self.seed, position.epoch, example, copy
            taken, image, label = self._good_example(example, size, key, batch["bad"])
            batch["image"][row], batch["label"][row] = image, label
            if self.stored:
                batch["teacher"][row] = self.stored[taken]
        return batch

    def _good_example(self, example: int, size: int, key: tuple[int, ...],
                      bad: dict[int, str]) -> tuple[int, np.ndarray, int]:
        """The example, or the next good one where it is `bad`; its transformed image and label."""
        for taken in substitutes(example, len(self.source)):
            try:
                image, label = self.source[taken]
                return taken, self.transform(image, size, order.generator(*key)), label
            except BadImage as error:
                bad[taken] = str(error)
        raise ValueError(f"{self.source}: holds no good record")


class EvaluationBatches:
    """Every example once, in the order of the source; rows beyond the last one, and those of bad
    records, are black with weight 0.

    Any `batch_size`: each batch is filled up to a multiple of the parts that the mesh cuts it into.
    The transform is `(image, size, rng)` as in training; one that draws, as a random crop, draws
    for an example what follows from `seed` and the example's number alone.
    """

    def __init__(self, source: Source, transform: Callable, image_size: int, batch_size: int,
                 share: Share, seed: int = 0):
        self.source, self.share, self.seed = source, share, seed
        self.transform = _of_example(transform, evaluation_clip, source.frames)
        self.batch_size, self.image_size = batch_size, image_size

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, i: int) -> dict[str, np.ndarray | dict[int, str]]:
        rows = self.share.rows(-(-self.batch_size // self.share.of) * self.share.of)
        batch = _empty(len(rows), self.source.frames, self.image_size)
        first, end = i * self.batch_size, min((i + 1) * self.batch_size, len(self.source))
        for row, example in enumerate((first + rows).tolist()):
            if example < end:
                try:
                    image, batch["label"][row] = self.source[example]
                    rng = order.generator(self.seed, 0, example, 0)
                    batch["image"][row] = self.transform(image, self.image_size, rng)
                    batch["weight"][row] = 1
                except BadImage as error:
                    batch["bad"][example] = str(error)
        return batch


def _of_example(transform: Callable, of_clip: Callable, frames: int | None) -> Callable:
    """The `transform` of an image, or where examples are clips that of a clip."""
    return partial(of_clip, frames=frames, transform=transform) if frames else transform


def _empty(count: int, frames: int | None,
           size: int) -> dict[str, np.ndarray | dict[int, str]]:
    return {"image": np.zeros(image_shape(count, frames, size), np.uint8),
            "label": np.zeros(count, np.int32), "weight": np.zeros(count, np.float32),
            "bad": {}}
