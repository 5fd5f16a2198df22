"""Checkpoints that are whole or not used: saved in the background, verified bit by bit when they
are read.

A step directory holds two items, committed by one rename: `state`, the arrays in Orbax's files, as
nested dicts whose paths are those of the train state, and `manifest`, one JSON record {"format",
"step", "leaves", "metrics", "extra", "checksum"}. A restored state has the shapes, dtypes and
fingerprints of its manifest; a step that has not is set aside and the one before it is taken.
"""
from collections.abc import Callable
import json
import math
from pathlib import Path
import time

from absl import logging
from etils import epath
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vit_efficient.limits import Count, NonNegative
from vit_efficient.manifest import compare, describe, manifest, named_leaves, seal, unseal

FORMAT = 1


class DamagedCheckpoint(Exception):
    """What stands on disk under the name of a step cannot be read or is not what was saved."""


class Checkpoints:
    """The checkpoints of one run, in `directory`; a context manager whose end waits for the last
    save.

    Every process calls the same methods in the same order; process 0's view of the directory
    decides for all.

    Args:
      directory: where the steps stand; made if it is missing.
      read_only: for a reader of a run that may be somebody else's: nothing is saved, cleaned or
        renamed.
      keep: how many of the newest steps stay, besides the best by `metrics["top1"]`.
      every_epochs: save each time that this many epochs are done (`due`); 0: never for that reason.
      every_minutes: save when the last save is so long ago (`overdue`); 0: never for that reason.
    """

    def __init__(self, directory: Path, read_only: bool = False, *, keep: Count = 2,
                 every_epochs: NonNegative = 1.0, every_minutes: NonNegative = 30.0):
        self.directory = epath.Path(directory).absolute()
        self.every_epochs, self.every_minutes = every_epochs, every_minutes
        self._saved_at, self._saving = time.monotonic(), False
        self._top1: dict[int, float | None] = {}        # of steps seen so far
        self._manager = None if read_only else ocp.CheckpointManager(
            self.directory, options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True, lightweight_initialize=True,
                preservation_policy=_NewestAndBest(keep, self._score)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            logging.exception("The last save failed as well.")

    def steps(self) -> list[int]:
        """Steps that stand on disk, damaged ones too, in rising order."""
        found = ocp.path.step.standard_name_format().find_all(self.directory)
        return sorted(step.step for step in found if step.path.name == str(step.step))

    def best_step(self) -> int | None:
        """The step with the highest top1, the newest of equals; None where no step has one."""
        return _best(self.steps(), self._score)

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """True after every `every_epochs`, in whole steps; raises the error of a save that has
        failed meanwhile."""
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()
        return self.every_epochs > 0 and step % max(round(self.every_epochs * steps_per_epoch), 1) == 0

    def overdue(self) -> bool:
        """True where the last save is `every_minutes` ago on process 0's clock; all processes ask
        at the same step."""
        seconds = time.monotonic() - self._saved_at
        return self.every_minutes > 0 and _from_first(lambda: seconds > 60 * self.every_minutes)

    def save(self, step: int, state, metrics: dict[str, float] | None = None, extra: dict | None = None) -> None:
        """Copies `state` off the devices and writes it in the background; it may be donated at
        once.

        A step that is there stays as it is. Waits for the save before, whose error it raises.

        Args:
          state: a tree of jax arrays.
          metrics: of this state's validation; a step without `top1` is never the best.
          extra: JSON values that `restore` gives back, lists for tuples.
        """
        self.wait()
        self._saved_at = time.monotonic()
        if step in self._manager.all_steps():
            return
        record = seal({"format": FORMAT, "step": step, "leaves": manifest(state), "extra": extra or {},
                       "metrics": {name: float(value) for name, value in (metrics or {}).items()}})
        self._top1[step] = _top1(record)
        self._manager.save(step, force=True, args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(_nested(state)), manifest=ocp.args.JsonSave(record)))
        self._saving = True

    def restore(self, like, step: int | str | None = None):
        """The state of a step, verified, on the shardings of `like`; or None where the directory
        holds no step.

        Args:
          like: the state as `jax.ShapeDtypeStruct`s with shardings.
          step: None for the newest that is whole, "best", or a number.

        Returns:
          (step, state, the manifest's record).

        Raises:
          ValueError: `like` is another state than the saved one (all differences are listed), the
            step is not there, or it is of a newer format. Nothing on disk has changed.
          DamagedCheckpoint: the step that was asked for is damaged, or all are. Nothing on disk has
            changed.
        """
        return self._restore(like, step, parts=None)

    def restore_parts(self, like: dict, step: int | str | None = None):
        """As `restore`, of the state's parts that `like` names ({"params": ..., "ema": ...}), and
        these alone."""
        return self._restore(like, step, parts=tuple(like))

    def wait(self) -> None:
        """Returns when the last save is on disk; raises its error."""
        self._saving = False
        if self._manager:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and raises its error."""
        if self._manager:
            try:
                self.wait()
            finally:
                self._manager.close()

    def _restore(self, like, step, parts):
        self.wait()
        steps = _from_first(self.steps)
        if not steps:
            return None
        if step is not None:
            return self._read(self._chosen(step, steps), like, parts)
        damaged = {}
        for step in reversed(steps):
            try:
                restored = self._read(step, like, parts)
            except DamagedCheckpoint as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, step)
            return restored
        raise DamagedCheckpoint("no checkpoint is whole, and none was touched:\n" + "\n".join(damaged.values()))

    def _chosen(self, step: int | str, steps: list[int]) -> int:
        chosen = _from_first(self.best_step) if step == "best" else step
        if chosen not in steps:
            raise ValueError(f"checkpoint {step}: {self.directory} holds steps {', '.join(map(str, steps))}"
                             + (", none of them with a top1" if step == "best" else ""))
        return chosen

    def _read(self, step: int, like, parts: tuple[str, ...] | None):
        """(step, state, record) on all processes, or the same error on all."""
        record = _from_first(lambda: self._record(step))
        if isinstance(record, str):
            raise DamagedCheckpoint(f"{self.directory / str(step)}: {record}")
        if record["format"] > FORMAT:
            raise ValueError(f"{self.directory / str(step)} has format {record['format']}, made by a newer version: "
                             f"this one reads up to {FORMAT}")
        leaves = {name: entry for name, entry in record["leaves"].items()
                  if parts is None or name.split("/")[0] in parts}
        if lines := compare(leaves, describe(like)):
            raise ValueError(f"{self.directory / str(step)} is of another model or recipe than this config; the "
                             f"checkpoint's leaves are expected, the config's were found:\n" + "\n".join(lines))
        state, error = self._arrays(step, like)
        if _anywhere(error):
            raise DamagedCheckpoint(f"{self.directory / str(step)}: {error or 'another process cannot read it'}")
        if lines := compare(leaves, manifest(state)):
            raise DamagedCheckpoint(f"{self.directory / str(step)}: {len(lines)} of {len(leaves)} leaves differ from "
                                    f"the manifest, the first is {lines[0]}")
        return step, state, record

    def _record(self, step: int) -> dict | str:
        """The manifest of a step, or what is wrong with it."""
        try:
            record = unseal((self.directory / str(step) / "manifest" / "metadata").read_text())
        except Exception as error:
            return _reason(error)
        return record if record["step"] == step else f"the manifest is that of step {record['step']}"

    def _arrays(self, step: int, like) -> tuple[object, str]:
        """(the state on the shardings of `like`, "") or (None, why it cannot be read); waits for no
        other process."""
        named, nested = named_leaves(like), _nested(like)
        assert all(leaf.sharding for leaf in named.values()), "without a sharding Orbax takes that of the save"
        # Not through the manager, whose barriers would hold the other processes where one cannot
        # read its shards.
        handler = ocp.PyTreeCheckpointHandler()
        try:
            restored = handler.restore(self.directory / str(step) / "state", args=ocp.args.PyTreeRestore(
                nested, ocp.checkpoint_utils.construct_restore_args(nested), partial_restore=True))
            read = traverse_util.flatten_dict(restored, sep="/")
            leaves = [read[name] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
                      for name, leaf in named.items()]
            if left_out := [name for name, leaf in zip(named, leaves) if not isinstance(leaf, jax.Array)]:
                return None, f"Orbax does not know {', '.join(left_out)}"
            return jax.tree.unflatten(jax.tree.structure(like), jax.block_until_ready(leaves)), ""
        except Exception as error:
            return None, _reason(error)
        finally:
            handler.close()

    def _set_aside(self, damaged: dict[int, str], used: int) -> None:
        """Reports damaged steps and, unless this is a reader, renames them: process 0, while the
        others wait."""
        for step, reason in damaged.items():
            self._top1.pop(step, None)
            if jax.process_index() == 0:
                fate = f"renamed to {self._rename(step)}" if self._manager else "left alone"
                logging.warning("Damaged checkpoint %s; %s, step %d is used.", reason, fate, used)
        if damaged and self._manager:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self._manager.reload()

    def _rename(self, step: int) -> str:
        name = f"bad-{step}"
        while (self.directory / name).exists():
            name += "+"
        (self.directory / str(step)).rename(self.directory / name)
        return name

    def _score(self, step: int) -> float | None:
        if step not in self._top1:
            record = self._record(step)
            self._top1[step] = None if isinstance(record, str) else _top1(record)
        return self._top1[step]


def read_weights(workdir: Path, weights: str, like: dict) -> tuple[int, dict]:
    """(step, parts) of the run in `workdir`, for a reader: nothing is changed there.

    Args:
      weights: "best", "latest" or a step.
      like: the parts to read, {"params": ..., "ema": ...}, as `jax.ShapeDtypeStruct`s with
        shardings.

    Raises ValueError where there is no such checkpoint or it is of another model.
    """
    step = int(weights) if weights.isdecimal() else {"best": "best", "latest": None}.get(weights, weights)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore_parts(like, step)
    if not found:
        raise ValueError(f"{workdir / 'checkpoints'} holds no checkpoint")
    return found[:2]


def stored_shapes(workdir: Path, parts: tuple[str, ...], place: jax.sharding.Sharding) -> dict:
    """What `read_weights` wants as `like` for `parts` of the run in `workdir`, all at `place`, as
    its newest readable manifest says; a part without arrays is {}."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        records = (checkpoints._record(step) for step in reversed(checkpoints.steps()))
        record = next((record for record in records if isinstance(record, dict)), None)
    if record is None:
        raise ValueError(f"{workdir / 'checkpoints'} holds no checkpoint")
    leaves = {name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"], sharding=place)
              for name, leaf in record["leaves"].items() if name.split("/")[0] in parts}
    return {part: {} for part in parts} | traverse_util.unflatten_dict(leaves, sep="/")


class _NewestAndBest:
    """Orbax's preservation policy: by number, not by the order of saving, and the best also across
    restarts."""

    def __init__(self, keep: int, score: Callable[[int], float | None]):
        self._keep, self._score = keep, score

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        kept = {*steps[-self._keep:], _best(steps, self._score)}
        return [info.step in kept for info in checkpoints]


def _nested(tree) -> dict:
    """Nested dicts of the leaves that have elements: Orbax stores no empty array, and `like` knows
    the empty nodes."""
    return traverse_util.unflatten_dict({name: leaf for name, leaf in named_leaves(tree).items() if leaf.size}, sep="/")


def _best(steps: list[int], score: Callable[[int], float | None]) -> int | None:
    scores = [(score(step), step) for step in steps]
    return max((pair for pair in scores if pair[0] is not None), default=(None, None))[1]


def _top1(record: dict) -> float | None:
    top1 = record["metrics"].get("top1", math.nan)
    return top1 if math.isfinite(top1) else None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]


def _from_first(ask: Callable):
    """What `ask` returns on process 0, a JSON value, on every process; a device collective where
    there are several."""
    if jax.process_count() == 1:
        return ask()
    text = json.dumps(ask() if jax.process_index() == 0 else None).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(np.resize(np.frombuffer(text, np.uint8), size))))


def _anywhere(error: str) -> bool:
    """True on every process where one has an error."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(error != ""))))
