"""The job `features`: stores what a model says of every training image, to teach another one.

    python -m vit_efficient.main --config=deit:imagefolder=PATH --config.init_from=FILE \\
        --job=features --out=DIR

Another run reads the folder as `teacher.stored` (data/stored.py, where its format stands).
"""
from functools import partial
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vit_efficient import disk
from vit_efficient.data.sources import Chosen
from vit_efficient.data.stored import ABOUT, ARRAY, FORMAT, Kind, describe, sampled
from vit_efficient.engine import machine, start as starts, state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.manifest import checksum, manifest
from vit_efficient.engine.rows import rows
from vit_efficient.engine.run import Run
from vit_efficient.engine.teacher import check_kind, signal, signal_shape
from vit_efficient.seams import objective
from vit_efficient.seams.phases import Phase

PROGRESS = "unfinished.json"        # ABOUT is written when the last row is there
SAVED_BATCHES = 50                  # after so many batches a kill loses nothing

log = logging.getLogger(__name__)


def features(config: ConfigDict, workdir: Path, *, out: str, kind: Kind = "class",
             weights: str = "best") -> dict[str, Any]:
    """Writes the folder `teacher.stored` of other runs: what a checkpoint of `workdir`, or where it
    has none the weights of `init_from`, says of every training image's centre crop, without
    augmentation; a bad record's row is zero. The same command after a kill goes on.

    Args:
      out: the folder; data/stored.py describes its files.
      kind: "class" tokens, all "tokens" or "logits". All tokens of ImageNet-1k by a DeiT-B are
        388 GB, its class tokens 2 GB.
      weights: as in every evaluation.
    Returns:
      What `features.json` holds. Raises ValueError where there are no such weights, the model does
      not give `kind`, or `out` holds something else.
    """
    if jax.process_count() > 1:
        raise ValueError("--job=features: runs in one process on one machine")
    machine.refuse_accidental_cpu()
    run = assemble(config)
    check_kind(f"--kind={kind}", run.model, kind)
    machine.compile_cache()
    step, fields = starts.weights(run, Path(workdir), weights)
    chosen, source, folder = states.weights(fields), run.data.train, Path(out).expanduser()
    labels, means = describe(source, sampled(len(source)))
    about = {"format": FORMAT, "kind": kind, "crop": config.augment.eval_crop, "labels": labels,
             "means": means, "model": config.model.name, "image_size": run.image_size,
             "step": step, "weights": checksum(manifest(chosen))}
    if not _finished(folder, about):
        forward = objective.Forward(run.model, Phase(), run.phases.scalars)
        array, done = _begin(folder, about, (len(source), *signal_shape(forward, kind)))
        log.info("%s: %d of %d rows are there", folder, done, len(array))
        _fill(run, forward, chosen, array, done, folder / PROGRESS, about)
        disk.write_json(folder / ABOUT, about)
    (folder / PROGRESS).unlink(missing_ok=True)
    print(f"{folder}: {kind} of {len(source)} images by {config.model.name}, step {step}")
    return about


def _fill(run: Run, forward: objective.Forward, weights: dict, array: np.ndarray, done: int,
          progress: Path, about: dict) -> None:
    """Computes the rows from `done` on; those of bad records are zero."""
    @jax.jit
    def program(weights: dict, batch: dict) -> jax.Array:
        fixed = {"collections": weights["collections"], "step": jnp.int32(about["step"])}
        images = run.augment.normalize(batch)["image"]
        return signal(forward, weights["params"], fixed, images, about["kind"]).astype(jnp.float16)

    rest, first = Chosen(run.data.train, range(done, len(array))), done
    for i, (places, said, end) in enumerate(rows(run, rest, partial(program, weights)), 1):
        if not np.isfinite(said).all():
            raise ValueError(f"--kind={about['kind']}: a number among rows {done} to {first + end} "
                             "is not finite in float16")
        array[done:first + end] = 0
        array[first + places] = said
        done = first + end
        if i % SAVED_BATCHES == 0:
            array.flush()
            disk.write_json(progress, about | {"done": done})
            log.info("%d of %d rows", done, len(array))
    array.flush()


def _finished(folder: Path, about: dict) -> bool:
    """True where `folder` holds these features; ValueError where it holds others."""
    if not (folder / ABOUT).exists():
        return False
    _same(folder / ABOUT, about)
    return True


def _same(path: Path, about: dict) -> dict:
    """What stands in the file `path`; ValueError where it tells of other features."""
    there = json.loads(path.read_text(encoding="utf-8"))
    if other := [key for key in about if there.get(key) != about[key]]:
        raise ValueError(f"--out={path.parent}: holds features of other {' and '.join(other)}; "
                         "give a new folder or delete this one")
    return there


def _begin(folder: Path, about: dict, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """The array to fill, mapped from its file, and how many of its rows are there."""
    progress, done = folder / PROGRESS, 0
    if progress.exists():
        done = _same(progress, about)["done"]
    elif folder.exists() and (not folder.is_dir() or any(
            path.suffix != disk.UNFINISHED for path in folder.iterdir())):
        raise ValueError(f"--out={folder}: must be a new or an empty folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        disk.write_json(progress, about | {"done": 0})
    if done:
        return np.load(folder / ARRAY, mmap_mode="r+"), done
    return np.lib.format.open_memmap(folder / ARRAY, "w+", np.float16, shape), 0
