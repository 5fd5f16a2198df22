"""Checkpoints that are whole or not used: saved in the background, verified bit by bit when read.

A step directory holds two items, committed by one rename: `state`, the arrays in Orbax's files, as
nested dicts whose paths are those of the train state, and `manifest`, one JSON record {"format",
"step", "leaves", "metrics", "extra", "checksum"}. A restored state has the shapes, dtypes and
fingerprints of its manifest; a step that has not is set aside and the one before it is taken.
"""
from collections.abc import Callable
import logging
import math
from pathlib import Path
import time

from etils import epath
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import orbax.checkpoint as ocp

from vit_efficient.engine import distributed
from vit_efficient.engine.manifest import compare, describe, manifest, named_leaves, seal, unseal
from vit_efficient.seams.objective import OWN
from vit_efficient.settings.values import Count, NonNegative

log = logging.getLogger(__name__)

FORMAT = 1


class DamagedCheckpoint(Exception):
    """What stands on disk under the name of a step cannot be read or is not what was saved."""


class Checkpoints:
    """The checkpoints of one run; a context manager whose end waits for the last save.

    All processes call the same methods in the same order; process 0's view of the disk decides.

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
            log.exception("The last save failed as well.")

    def steps(self) -> list[int]:
        """Steps that stand on disk, damaged ones too, in rising order."""
        found = ocp.path.step.standard_name_format().find_all(self.directory)
        return sorted(step.step for step in found if step.path.name == str(step.step))

    def best_step(self) -> int | None:
        """The step with the highest top1, the newest of equals; None where no step has one."""
        return _best(self.steps(), self._score)

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """True after every `every_epochs`, in whole steps; raises a failed save's error."""
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()
        every = max(round(self.every_epochs * steps_per_epoch), 1)
        return self.every_epochs > 0 and step % every == 0

    def overdue(self) -> bool:
        """True where the last save is `every_minutes` ago on process 0's clock, as all learn."""
        seconds = time.monotonic() - self._saved_at
        return self.every_minutes > 0 and distributed.from_first(
            lambda: seconds > 60 * self.every_minutes)

    def save(self, step: int, state, metrics: dict[str, float] | None = None,
             extra: dict | None = None) -> None:
        """Copies `state` off the devices, to be donated at once, and writes in the background.

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
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        record = seal({"format": FORMAT, "step": step, "leaves": manifest(state),
                       "extra": extra or {}, "metrics": metrics})
        self._top1[step] = _top1(record)
        self._manager.save(step, force=True, args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(_nested(state)), manifest=ocp.args.JsonSave(record)))
        self._saving = True

    def restore(self, like, step: int | str | None = None):
        """The state of a step, verified, on the shardings of `like`; None where there is no step.

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
        """As `restore`, of only the parts that `like` names ({"params": ..., "ema": ...}); it may
        lack parameters of the objective's own."""
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
        steps = distributed.from_first(self.steps)
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
        raise DamagedCheckpoint("\n".join(["no checkpoint is whole, and none was touched:",
                                           *damaged.values()]))

    def _chosen(self, step: int | str, steps: list[int]) -> int:
        chosen = distributed.from_first(self.best_step) if step == "best" else step
        if chosen not in steps:
            there = ", ".join(map(str, steps)) + (", none with a top1" if step == "best" else "")
            raise ValueError(f"checkpoint {step}: {self.directory} holds steps {there}")
        return chosen

    def _read(self, step: int, like, parts: tuple[str, ...] | None):
        """(step, state, record) on all processes, or the same error on all."""
        place = self.directory / str(step)
        record = distributed.from_first(lambda: self._record(step))
        if isinstance(record, str):
            raise DamagedCheckpoint(f"{place}: {record}")
        if record["format"] > FORMAT:
            raise ValueError(f"{place} has format {record['format']}, made by a newer version: "
                             f"this one reads up to {FORMAT}")
        asked = named_leaves(like)
        leaves = {name: entry for name, entry in record["leaves"].items()
                  if parts is None or name.split("/")[0] in parts and
                  (name in asked or not _own(name))}
        if lines := compare(leaves, describe(like)):
            raise ValueError("\n".join([
                f"{place} is of another model or recipe than this config; "
                "the checkpoint's leaves are expected, the config's were found:", *lines]))
        state, error = self._arrays(step, like)
        if distributed.anywhere(error):
            raise DamagedCheckpoint(f"{place}: {error or 'another process cannot read it'}")
        if lines := compare(leaves, manifest(state)):
            raise DamagedCheckpoint(f"{place}: {len(lines)} of {len(leaves)} leaves differ from "
                                    f"the manifest, the first is {lines[0]}")
        return step, state, record

    def _record(self, step: int) -> dict | str:
        """The manifest of a step, or what is wrong with it."""
        try:
            record = unseal((self.directory / str(step) / "manifest" / "metadata").read_text())
        except Exception as error:
            return _reason(error)
        own = record["step"]
        return record if own == step else f"the manifest is that of step {own}"

    def _arrays(self, step: int, like) -> tuple[object, str]:
        """(the state as `like`, "") or (None, why it cannot be read), without other processes."""
        named, nested = named_leaves(like), _nested(like)
        # Without a sharding Orbax takes that of the save.
        assert all(leaf.sharding for leaf in named.values()), "`like` has a leaf without a sharding"
        # Not through the manager, whose barriers hold all processes where one cannot read.
        handler = ocp.PyTreeCheckpointHandler()
        try:
            restored = handler.restore(
                self.directory / str(step) / "state", args=ocp.args.PyTreeRestore(
                    nested, ocp.checkpoint_utils.construct_restore_args(nested),
                    partial_restore=True))
            read = traverse_util.flatten_dict(restored, sep="/")
            leaves = {name: read[name] if leaf.size else
                      jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
                      for name, leaf in named.items()}
            lost = [name for name, leaf in leaves.items() if not isinstance(leaf, jax.Array)]
            if lost:
                return None, f"Orbax does not know {', '.join(lost)}"
            leaves = jax.block_until_ready(list(leaves.values()))
            return jax.tree.unflatten(jax.tree.structure(like), leaves), ""
        except Exception as error:
            return None, _reason(error)
        finally:
            handler.close()

    def _set_aside(self, damaged: dict[int, str], used: int) -> None:
        """Process 0 reports damaged steps and, unless it is a reader, renames them; all wait."""
        for step, reason in damaged.items():
            self._top1.pop(step, None)
            if jax.process_index() == 0:
                fate = f"renamed to {self._rename(step)}" if self._manager else "left alone"
                log.warning("Damaged checkpoint %s; %s, step %d is used.", reason, fate, used)
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
      like: the parts, {"params": ..., "ema": ...}, as `jax.ShapeDtypeStruct`s with shardings.

    Raises ValueError where there is no such checkpoint or it is of another model.
    """
    words = {"best": "best", "latest": None}
    step = int(weights) if weights.isdecimal() else words.get(weights, weights)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore_parts(like, step)
    if not found:
        raise ValueError(f"{workdir / 'checkpoints'} holds no checkpoint")
    return found[:2]


def stored_shapes(workdir: Path, parts: tuple[str, ...], place: jax.sharding.Sharding) -> dict:
    """What `read_weights` wants as `like` for `parts` of the run in `workdir`, all at `place`, as
    its newest readable manifest says, without parameters of the objective's own; a part without
    arrays is {}."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        records = (checkpoints._record(step) for step in reversed(checkpoints.steps()))
        record = next((record for record in records if isinstance(record, dict)), None)
    if record is None:
        raise ValueError(f"{workdir / 'checkpoints'} holds no checkpoint")
    leaves = {name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"], sharding=place)
              for name, leaf in record["leaves"].items()
              if name.split("/")[0] in parts and not _own(name)}
    return {part: {} for part in parts} | traverse_util.unflatten_dict(leaves, sep="/")


def _own(name: str) -> bool:
    """True for a leaf under `params/objective` or `ema/params/objective`."""
    return f"params/{OWN}/" in name


class _NewestAndBest:
    """Orbax's preservation policy: newest by number, not by time, and the best across restarts."""

    def __init__(self, keep: int, score: Callable[[int], float | None]):
        self._keep, self._score = keep, score

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        kept = {*steps[-self._keep:], _best(steps, self._score)}
        return [info.step in kept for info in checkpoints]


def _nested(tree) -> dict:
    """Nested dicts of the leaves that have elements: Orbax stores no empty array."""
    named = {name: leaf for name, leaf in named_leaves(tree).items() if leaf.size}
    return traverse_util.unflatten_dict(named, sep="/")


def _best(steps: list[int], score: Callable[[int], float | None]) -> int | None:
    scores = [(score(step), step) for step in steps]
    return max((pair for pair in scores if pair[0] is not None), default=(None, None))[1]


def _top1(record: dict) -> float | None:
    top1 = record["metrics"].get("top1", math.nan)
    return top1 if math.isfinite(top1) else None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]
