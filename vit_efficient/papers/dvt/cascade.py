"""An early exit under jit: a cascade whose later stages run for those that stay alone, in full
batches (DVT, arXiv 2105.15075, section 3.3; how it runs is ours, the authors published none of it).

    cascade = Cascade(model, variables, thresholds=(0.9, 0.7, -1e8), batch_size=64,
                      normalize=lambda images: augment.normalize({"image": images})["image"])
    for answer in cascade((name, image) for name, image in photos):
        print(answer.id, answer.exit, answer.logits.argmax())

Each stage is one compiled function of a fixed batch, images in, logits and what the next stage
reuses out. Those that stay are moved together on the device and wait in a queue of two batches for
the next stage, which runs when one is full; so there is no padding before the stream ends. A `Lane`
is a device with its queues; lanes know nothing of one another, and nothing is sent between devices.
"""
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.papers.dvt.models import DVT
from vit_efficient.papers.dvt.transformer import Transformer

AXES = {"image": 0, "features": 0, "relations": 1}      # of the images in what waits
IN_FLIGHT = 2           # batches that a device has been given before the host reads the oldest


class Answer(NamedTuple):
    """To the image `id`: the exit that it left at, from 0, and that exit's logits float32 [K]."""
    id: Any
    exit: int
    logits: np.ndarray


class Cascade:
    """Answers a stream of images; `thresholds` may be set anew at any time, nothing is compiled
    then. Every image of a batch is answered as if it were alone in it."""

    def __init__(self, model: DVT, variables: dict, thresholds: Sequence[float], batch_size: int, *,
                 normalize: Callable[[jax.Array], jax.Array] = lambda images: images,
                 devices: Sequence[jax.Device] | None = None):
        """
        Args:
          variables: the model's, jax or numpy arrays by collection.
          thresholds: of the largest probability, one for each exit, the last 0 or below.
          batch_size: of every stage, on each device.
          normalize: of images [B, S, S, 3] as they come, inside the compiled stages.
          devices: by default all of this process.
        """
        self.model, self.batch_size, self.normalize = model, batch_size, normalize
        self.stages = [jax.jit(partial(self._stage, name)) for name in model.stages()]
        self.thresholds = thresholds
        self.lanes = [Lane(self, variables, device) for device in devices or jax.local_devices()]

    @property
    def thresholds(self) -> np.ndarray:
        """float32 [E]."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, given: Sequence[float]) -> None:
        given = np.asarray(given, np.float32)
        if given.shape != (len(self.stages),) or np.isnan(given).any() or given[-1] > 0:
            raise ValueError(f"thresholds = {given.tolist()}: must be {len(self.stages)} numbers, "
                             "one for each exit, the last 0 or below")
        self._thresholds = given

    def __call__(self, stream: Iterable[tuple[Any, np.ndarray]]) -> Iterator[Answer]:
        """Every (id, image [S, S, 3]) of the stream answered, as soon as its batch is done, not in
        the stream's order."""
        stream = iter(stream)
        for lane in itertools.cycle(self.lanes):
            batch = list(itertools.islice(stream, self.batch_size))
            if not batch:
                break
            yield from lane.feed(batch)
        for lane in self.lanes:
            yield from lane.finish()

    def answer(self, image: np.ndarray) -> tuple[int, np.ndarray]:
        """(exit, logits) of one image [S, S, 3]: batches of 1, and no later stage than needed."""
        variables, waiting = self.lanes[0].variables, {"image": jnp.asarray(image)[None]}
        for k, stage in enumerate(self.stages):
            logits, stays, waiting = stage(variables, waiting, self.thresholds[k])
            if not stays[0]:
                return k, np.asarray(logits[0])
        raise AssertionError("everybody leaves at the last exit")

    @property
    def held_bytes(self) -> int:
        """What waits between the stages takes at the most, on all devices: two batches a queue."""
        return sum(array.nbytes for lane in self.lanes for queue in lane.queues if queue.arrays
                   for array in queue.arrays.values())

    def _stage(self, name: str, variables: dict, waiting: dict,
               threshold: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        """(logits [B, K], who stays bool [B], what the next stage is given) of the stage `name`."""
        own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
        made = Transformer(**self.model.stages()[name], parent=None)
        out = made.apply(own, self.normalize(waiting["image"]), waiting.get("features"),
                         waiting.get("relations"), method="features")
        stays = confidence(out["logits"]) < threshold
        reused = {"features": self.model.feature_reuse, "relations": self.model.relation_reuse}
        return out["logits"], stays, {"image": waiting["image"]} | {
            kind: out[kind] for kind, used in reused.items() if used}


def confidence(logits: jax.Array) -> jax.Array:
    """The largest softmax probability, float32 [B]."""
    return jax.nn.softmax(logits.astype(jnp.float32)).max(-1)


class Queue:
    """What waits for a stage on a device: arrays of two batches, of which the first `len(ids)`
    images are real."""

    def __init__(self, batch_size: int):
        self.batch_size, self.ids = batch_size, []
        self.arrays: dict[str, jax.Array] | None = None

    def push(self, passed: dict, stays: np.ndarray, ids: list) -> None:
        """Adds those that stay; there is room for a batch."""
        if self.arrays is None:
            self.arrays = _doubled(passed)
        self.arrays = _pushed(self.arrays, passed, stays, len(self.ids))
        self.ids += [id for id, stay in zip(ids, stays) if stay]

    def pop(self) -> tuple[dict, list]:
        """Takes out the first batch, real or not to its end, and its ids."""
        batch, self.arrays = _popped(self.arrays, self.batch_size)
        ids, self.ids = self.ids[:self.batch_size], self.ids[self.batch_size:]
        return batch, ids


class Lane:
    """A device: its copy of the weights, a queue before each stage but the first, and the batches
    that it is computing."""

    def __init__(self, cascade: Cascade, variables: dict, device: jax.Device):
        self.cascade, self.device = cascade, device
        self.variables = jax.device_put(variables, device)
        self.queues = [Queue(cascade.batch_size) for _ in cascade.stages[1:]]
        self.pending: deque[tuple] = deque()

    def feed(self, batch: list[tuple[Any, np.ndarray]]) -> Iterator[Answer]:
        """Starts the first stage for a batch; yields what is known by now."""
        ids = [id for id, _ in batch]
        images = np.stack([image for _, image in batch])
        missing = self.cascade.batch_size - len(ids)
        if missing:                                     # once, at the end of the stream
            images = np.concatenate([images, np.repeat(images[-1:], missing, 0)])
        self.start(0, {"image": jax.device_put(images, self.device)}, ids)
        yield from self.settle(IN_FLIGHT - 1)

    def finish(self) -> Iterator[Answer]:
        """Answers everybody who waits, in batches that need not be full."""
        yield from self.settle(0)
        for k, queue in enumerate(self.queues, 1):
            while queue.ids:
                self.start(k, *queue.pop())
                yield from self.settle(0)

    def start(self, k: int, waiting: dict, ids: list) -> None:
        """Gives the device a batch of stage `k`; returns at once."""
        cascade = self.cascade
        out = cascade.stages[k](self.variables, waiting, cascade.thresholds[k])
        self.pending.append((k, ids, out))

    def settle(self, keep: int) -> Iterator[Answer]:
        """Reads results, oldest first, until `keep` batches are being computed: yields who leaves,
        queues who stays, and starts a stage whose batch is full."""
        while len(self.pending) > keep:
            k, ids, (logits, stays, passed) = self.pending.popleft()
            logits, stays = jax.device_get((logits, stays))
            stays = stays & (np.arange(len(stays)) < len(ids))
            for id, row, stay in zip(ids, logits, stays):
                if not stay:
                    yield Answer(id, k, row)
            if stays.any():
                queue = self.queues[k]
                queue.push(passed, stays, ids)
                if len(queue.ids) >= queue.batch_size:
                    self.start(k + 1, *queue.pop())


@jax.jit
def _doubled(passed: dict) -> dict:
    """Zeros for two batches."""
    return {kind: jnp.concatenate([jnp.zeros_like(array)] * 2, AXES[kind])
            for kind, array in passed.items()}


@partial(jax.jit, donate_argnums=0)
def _pushed(arrays: dict, passed: dict, stays: jax.Array, count: jax.Array) -> dict:
    """The images that stay moved to the front and written from place `count` on; what is behind
    them is overwritten by the next ones."""
    front = jnp.nonzero(stays, size=len(stays), fill_value=0)[0]
    return {kind: jax.lax.dynamic_update_slice_in_dim(
        array, jnp.take(passed[kind], front, AXES[kind]), count, AXES[kind])
        for kind, array in arrays.items()}


@partial(jax.jit, static_argnums=1, donate_argnums=0)
def _popped(arrays: dict, size: int) -> tuple[dict, dict]:
    """The first batch, and the second one in its place."""
    half = lambda kind, start: jax.lax.slice_in_dim(arrays[kind], start, start + size,
                                                    axis=AXES[kind])
    first = {kind: half(kind, 0) for kind in arrays}
    rest = {kind: jax.lax.dynamic_update_slice_in_dim(array, half(kind, size), 0, AXES[kind])
            for kind, array in arrays.items()}
    return first, rest
