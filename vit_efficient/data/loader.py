"""Config group `loader`: prepares batches ahead of the devices, and puts them there.

Grain runs the threads and worker processes; one more thread copies finished batches to the devices,
so that the copy of the next batch overlaps the step of this one. Nothing here changes what is in a
batch (see `batches.py`).
"""
from collections.abc import Callable, Iterator
import contextlib
import logging
import multiprocessing
from multiprocessing.connection import wait
import os
import queue
import signal
import threading
import time

from absl import flags
import grain
import jax

from vit_efficient.data.badrecords import BadRecords
from vit_efficient.data.batches import EvaluationBatches, Share, TrainBatches, share_of
from vit_efficient.data.sources import Data, Source
from vit_efficient.data.stored import Stored
from vit_efficient.seams.phases import Phases
from vit_efficient.settings.values import Count, Whole

log = logging.getLogger(__name__)

SLOW_SECONDS, CLOSE_SECONDS = 5.0, 30.0


def train_batches(data: Data, transform: Callable, phases: Phases, batch_size: int,
                  sharding: jax.sharding.Sharding, seed: int, start: int,
                  stored: Stored | None = None, *, workers: Whole = 0, threads: Count = 8,
                  prefetch: Count = 2) -> "Batches":
    """The batches of steps `start` to `phases.total`: global arrays `image` uint8 [B, S, S, 3], of
    clips [B, F, S, S, 3], `label` int32 [B] and `weight` float32 [B], whatever the other arguments
    are; with a stored teacher `teacher` float16 [B, ...].

    Args:
      transform: `(image, size, rng) -> uint8 [size, size, 3]` on the host, as `Augment.train`.
      sharding: of the first axis of every array; a process loads only the rows of its own devices.
      workers: processes that prepare batches, for sources that Python's lock slows down; 0 prepares
        them in this one. Batches come back through /dev/shm, which must hold a few per worker.
      threads: threads of each process; each prepares one batch at a time, so as many batches are
        held. 1 is the fastest for tiny images in memory, which Python's lock serialises anyway.
      prefetch: batches that lie ready on the devices.
    """
    batches = TrainBatches(source=data.train, transform=transform, phases=phases,
                           batch_size=batch_size, image_size=data.image_size,
                           share=share_of(sharding), seed=seed, start=start, stored=stored)
    return Batches(batches=batches, sharding=sharding, workers=workers, threads=threads,
                   prefetch=prefetch)


def evaluation_batches(source: Source, transform: Callable, image_size: int, batch_size: int,
                       sharding: jax.sharding.Sharding, seed: int = 0, *, workers: Whole = 0,
                       threads: Count = 8, prefetch: Count = 2) -> "Batches":
    """Every example of `source` exactly once, in order; padding has `weight` 0. Arrays and keywords
    as in `train_batches`; the keywords are those of the group `loader`.

    Args:
      transform: `(image, size, rng) -> uint8 [size, size, 3]`, as `Augment.evaluate`, or one that
        draws, from `seed` and the example's number alone.
    """
    batches = EvaluationBatches(source=source, transform=transform, image_size=image_size,
                                batch_size=batch_size, share=share_of(sharding), seed=seed)
    return Batches(batches=batches, sharding=sharding, workers=workers, threads=threads,
                   prefetch=prefetch)


class Batches(Iterator):
    """Iterates over batches on the devices; an error of a source or a worker is raised in `next`.

    `waited` counts the seconds in which a batch was asked for and not ready; whoever reports it
    sets it back to 0. `bad` are the bad records of the batches so far; the end of the last batch
    settles them. Use it as a context manager or call `close`.
    """

    def __init__(self, batches: TrainBatches | EvaluationBatches, sharding: jax.sharding.Sharding,
                 workers: int, threads: int, prefetch: int):
        self.waited = 0.0
        self._source, self._ended = str(batches.source), None
        self.bad = BadRecords(batches.source.max_bad_records, self._source)
        self._ready, self._stop = queue.Queue(prefetch), threading.Event()
        dataset = _dataset(batches, workers, threads)
        work = dataset, batches.share, sharding, self.bad, self._ready, self._stop
        self._thread = threading.Thread(target=_feed, args=work, name="batches to the devices",
                                        daemon=True)
        self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        if self._ended:
            raise self._ended
        began = time.perf_counter()
        try:
            batch, self._ended = self._get()
        finally:
            self.waited += time.perf_counter() - began
        if self._ended:
            self.close()
            if isinstance(self._ended, StopIteration):
                self.bad.settle()
            raise self._ended
        return batch

    def _get(self) -> tuple[dict | None, BaseException | None]:
        try:
            return self._ready.get(timeout=SLOW_SECONDS)
        except queue.Empty:
            log.warning("Waited more than %.1f seconds for a batch of %s: the host prepares "
                            "images more slowly than the devices use them (see loader.workers, "
                            "loader.threads).",
                            SLOW_SECONDS, self._source)
        return self._ready.get()

    def close(self):
        """Stops threads and worker processes; batches being prepared are finished and dropped."""
        self._ended = self._ended or StopIteration()
        self._stop.set()
        # Not for ever: a source that never answers must not hold up the end.
        self._thread.join(CLOSE_SECONDS)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error):
        self.close()

    def __del__(self):
        self._stop.set()


def _dataset(batches: TrainBatches | EvaluationBatches, workers: int,
             threads: int) -> grain.IterDataset:
    """One element is a whole batch: what is in it cannot depend on who prepares it."""
    dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(threads, threads))
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()            # Grain reads absl's flags, also outside of absl.app
    return dataset.mp_prefetch(grain.MultiprocessingOptions(workers), worker_init_fn=_start_worker)


def _feed(dataset: grain.IterDataset, share: Share, sharding: jax.sharding.Sharding,
          bad: BadRecords, ready: queue.Queue, stop: threading.Event):
    """Puts `(batch, None)` for every batch and at last `(None, error)`, until `stop` is set."""
    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def place(x):
        shape = (len(x) // len(share.parts) * share.of, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    end = StopIteration()
    try:
        with contextlib.closing(iter(dataset)) as iterator:
            for batch in iterator:
                bad.meet(batch.pop("bad"))
                if not put((jax.tree.map(place, batch), None)):
                    break
    except BaseException as error:              # SystemExit too: the consumer must not hang
        end = error
    put((None, end))


def _start_worker(index: int, count: int):
    """In a worker process: the trainer answers signals, and the worker ends when it is gone.

    (A parent-death signal would not do: Linux sends it when the starting thread ends, and Grain
    starts workers from threads.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def follow():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()
