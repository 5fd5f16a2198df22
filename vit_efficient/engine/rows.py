"""What a program says of every image of a split: in order, without padding and bad records.

`jobs/features` stores such rows, papers' jobs calibrate and analyse by them. Every process gets all
rows, whatever devices and hosts computed them.

    program = jax.jit(lambda weights, batch: forward(weights, batch["image"]))
    for places, logits in rows(run, run.data.val, partial(program, weights)):
        stored[places] = logits
"""
from collections.abc import Callable, Iterator
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np

from vit_efficient.data.loader import evaluation_batches
from vit_efficient.data.sources import Source
from vit_efficient.engine import sharding

if TYPE_CHECKING:
    from vit_efficient.engine.run import Run


class Rows(NamedTuple):
    """Of a batch: the `places` of its good examples in the source, int64 [n], ascending, what the
    program said of them, numpy arrays [n, ...], and the place `end` behind the batch."""
    places: np.ndarray
    said: Any
    end: int


def rows(run: "Run", source: Source, program: Callable[[dict], Any], *,
         transform: Callable | None = None, seed: int = 0,
         batch_size: int | None = None) -> Iterator[Rows]:
    """A `Rows` for each batch of `source`, fetched while the next batch is computed.

    Args:
      program: jitted, `batch -> a tree of arrays [B, ...]`; the batch is as it comes from the host,
        see `Augment.normalize`.
      transform: on the host, by default that of an evaluation; one that draws does so from `seed`
        and the example's number alone.
      batch_size: by default the run's.
    """
    batch_size = batch_size or run.config.batch_size
    pending: tuple[int, Any, jax.Array] | None = None
    with evaluation_batches(source, transform or run.augment.evaluate, run.image_size, batch_size,
                            sharding.batch_sharding(run.mesh), seed,
                            **run.config.loader) as batches:
        for first, batch in zip(itertools.count(0, batch_size), batches):
            started = first, program(batch), batch["weight"]
            if pending:
                yield _fetched(*pending, batch_size)
            pending = started
    if pending:
        yield _fetched(*pending, len(source) - pending[0])


def _fetched(first: int, said: Any, weight: jax.Array, count: int) -> Rows:
    """The rows of a batch of `count` examples from `first` on; waits for the device."""
    said, weight = _on_host((said, weight))
    good = np.flatnonzero(weight[:count] > 0)
    return Rows(first + good, jax.tree.map(lambda array: array[good], said), first + count)


def _on_host(tree: Any) -> Any:
    """Global arrays as numpy, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
