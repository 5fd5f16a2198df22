"""A run, assembled from its config: what can be wrong with a config is found here, before a
compilation."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_efficient import (interop, manifest, objective, optim, sharding, state as states,
                           step as steps)
from vit_efficient.checkpoint import read_weights
from vit_efficient.config import load_stored
from vit_efficient.data.augment import Augment, make_augment
from vit_efficient.data.frames import image_shape
from vit_efficient.data.sources import Data, open_data
from vit_efficient.data.stored import Stored
from vit_efficient.phases import Length, Phase, Phases
from vit_efficient.pretrained import given_weights
from vit_efficient.rooms import door
from vit_efficient.sparsity import Sparsity
from vit_efficient.zoo import create_model


@dataclass(frozen=True)
class Run:
    """The parts of a run. `teacher` is `None` or `(model, {"params", "collections"})`."""
    config: ConfigDict
    data: Data
    augment: Augment
    model: nn.Module
    length: Length
    phases: Phases
    optimizer: optim.Optimizer
    sparsity: Sparsity
    mesh: Mesh
    teacher: tuple | None

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels."""
        return self.data.image_size

    def objective(self, phase: Phase) -> objective.Objective:
        """The objective of `phase`, with its forward function."""
        make = door("objective", self.config.objective.name)
        still = optim.frozen(self.config.optim.trained) if self.config.optim.trained else None
        forward = objective.Forward(self.model, phase, self.phases.scalars, still)
        teacher = objective.Forward(self.teacher[0], Phase(), {}) if self.teacher else None
        teacher = self.data.stored or teacher
        made = make(forward, phase, teacher, **options(self.config.objective))
        if set(made.needs) - set(self.model.knobs):
            raise ValueError(
                f"objective.name = {self.config.objective.name}: needs a model with the knobs "
                f"{', '.join(made.needs)}; model.name = {self.config.model.name} has "
                f"{', '.join(self.model.knobs) or 'none'}")
        if self.data.stored and not made.reads_stored:
            raise ValueError(f"{self.data.stored}: objective.name = {self.config.objective.name} "
                             "learns from a teacher that sees its images, set teacher.workdir or "
                             "teacher.init_from")
        return made

    def macs(self, phase: Phase) -> float:
        """Multiply-adds of one image in the forward passes of a training step of `phase`, of all
        nets that learn in it; the mean where the step draws them."""
        return sum(often * sum(self.model.macs(**dict(phase.model) | knobs).values())
                   for knobs, often in self.objective(phase).passes)

    def create_state(self) -> states.State:
        """The state before the first step, from the config's seed; jittable."""
        images = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.float32)
        return self.state_around(
            self.model.init(jax.random.key(self.config.seed), images, train=False))

    def state_around(self, variables: dict) -> states.State:
        """The state before the first step with the model's `variables`; jittable."""
        init = self.objective(self.phases.phase_at(0)).init
        if init:
            own = init(jax.random.fold_in(jax.random.key(self.config.seed), 0x0B7EC7))
            variables = variables | {"params": variables["params"] | {states.OWN: own}}
        return states.create(self.config.seed, variables, self.optimizer, self.sparsity,
                             self.config.step.ema_decay > 0)

    @cached_property
    def abstract_state(self) -> states.State:
        """The state's shapes, dtypes and shardings."""
        return sharding.abstract(self.mesh, jax.eval_shape(self.create_state))

    def fresh_state(self) -> states.State:
        """The state before the first step, on its devices."""
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(self.create_state, out_shardings=places)()

    def frozen(self) -> dict:
        """What no step changes: the teacher's weights, replicated."""
        return {"teacher": self.teacher[1]} if self.teacher else {}

    def fingerprint(self) -> dict:
        """What the checkpoint must know besides the state: which teacher it was."""
        if self.data.stored:
            return {"teacher": self.data.stored.fingerprint()}
        if not self.teacher:
            return {}
        return {"teacher": manifest.checksum(manifest.manifest(self.teacher[1]))}

    def abstract_batch(self, size: int, phase: Phase = Phase()) -> dict:
        """Shapes, dtypes and sharding of a batch of `size` examples, as it comes from the host."""
        side = dict(phase.data).get("image_size", self.image_size)
        array = partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(self.mesh))
        batch = {"image": array(image_shape(size, self.data.train.frames, side), jnp.uint8),
                 "label": array((size,), jnp.int32), "weight": array((size,), jnp.float32)}
        if self.data.stored:
            batch["teacher"] = array((size, *self.data.stored.shape), jnp.float16)
        return batch

    def step(self, phase: Phase) -> Callable:
        """The training step of `phase`, jitted, its state donated; ValueError where training lacks
        something, as a teacher."""
        aim = self.objective(phase)
        if aim.lacks:
            raise ValueError(aim.lacks)
        made = steps.make_step(aim, self.optimizer, self.sparsity, phase,
                               partial(self.augment.on_device, num_classes=self.data.num_classes),
                               **self.config.step)
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(made, donate_argnames="state",
                       out_shardings=(places, sharding.replicated(self.mesh)))

    def traced_step(self, phase: Phase, size: int | None = None) -> jax.stages.Traced:
        """The training step of `phase` for batches of `size` images (by default the config's),
        to be lowered and compiled."""
        return self.step(phase).trace(
            self.abstract_state, self.frozen(),
            self.abstract_batch(size or self.config.batch_size, phase))


def options(group: ConfigDict) -> dict[str, Any]:
    """A door group's keys without its `name`."""
    return {key: value for key, value in group.items() if key != "name"}


def make_model(config: ConfigDict, data: Data) -> nn.Module:
    """The config's model, for the classes and the image size of `data`."""
    return create_model(num_classes=data.num_classes, image_size=data.image_size,
                        dtype=config.dtype, **config.model)


def assemble(config: ConfigDict, data: Data | None = None, mesh: Mesh | None = None) -> Run:
    """Builds every part of a run; ValueError naming the key for what does not fit together.

    A run that is compiled for devices that are not there gives its own `mesh`, and `data` of which
    only numbers are read; its teacher then has shapes in place of weights.
    """
    read_teacher = load_teacher if mesh is None else abstract_teacher
    data = data or open_data(**config.data)
    augment = make_augment(**config.augment)
    model = make_model(config, data)
    if len(data.train) < config.batch_size:
        raise ValueError(f"batch_size = {config.batch_size}: the training set has only "
                         f"{len(data.train)} images")
    length = Length(len(data.train), config.batch_size, config.epochs, augment.repeats)
    if not length.total:
        raise ValueError(f"epochs = {config.epochs:g}: less than one step of {config.batch_size} "
                         "images")
    phases = door("phases", config.phases.name)(length, model, **options(config.phases))
    optimizer = optim.make_optimizer(length, model.no_decay, **config.optim)
    sparsity = door("sparsity", config.sparsity.name)(**options(config.sparsity))
    mesh = mesh or sharding.make_mesh(**config.mesh)
    sharding.check_batch(mesh, "batch_size", config.batch_size, config.step.accumulate)
    if config.teacher.stored:
        data = data._replace(stored=_stored(config, data, read_teacher is load_teacher))
    teacher = _teacher(config, data, mesh, read_teacher)
    run = Run(config, data, augment, model, length, phases, optimizer, sparsity, mesh, teacher)
    jax.eval_shape(partial(augment.on_device, num_classes=data.num_classes),
                   run.abstract_batch(config.batch_size), jax.random.key(0))
    for phase in phases.distinct():
        run.objective(phase)
    return run


def _stored(config: ConfigDict, data: Data, images: bool) -> Stored:
    """The config's stored teacher, fit for the training set; without `images` for its length."""
    stored = Stored(Path(config.teacher.stored))
    stored.check_augment(config.augment)
    if images:
        stored.check_source(data.train)
    else:
        stored.check_length(len(data.train))
    return stored


def _teacher(config: ConfigDict, data: Data, mesh: Mesh, read: Callable) -> tuple | None:
    """The config's teacher, None where it has none."""
    given = config.teacher
    ways = [f"teacher.{key}" for key in ("workdir", "init_from", "stored") if given[key]]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)}: give one of them")
    if bool(given.init_from) != bool(given.model):
        raise ValueError(f"teacher.init_from = {given.init_from!r} and teacher.model = "
                         f"{given.model!r}: they go together, a file and what model it is of")
    if given.workdir or given.init_from:
        return read(data, mesh, config.dtype, **given)
    return None


def load_teacher(data: Data, mesh: Mesh, dtype: str = "float32", *, workdir: str = "",
                 weights: str = "best", init_from: str = "", model: str = "",
                 stored: str = "") -> tuple[nn.Module, dict]:
    """The teacher `(model, {"params", "collections"})`, on the run's classes and image size.

    Args:
      dtype: the run's, for a model that no stored config describes.
      workdir: that of a finished run; its averaged weights teach where it has an EMA. "" with an
        empty `init_from` is no teacher.
      weights: its checkpoint: "best", "latest" or a step.
      init_from, model: in place of a workdir any weights that `init_from` may name, and which model
        of the zoo they are.
      stored: in place of both a folder with what a teacher said of every training image, as
        `--job=features` writes it (data/stored.py); such a teacher is not loaded here.
    """
    made, like = _teacher_shapes(data, mesh, dtype, workdir, model)
    if workdir:
        return made, states.weights(read_weights(Path(workdir), weights, like)[1])
    try:
        variables = given_weights(made, init_from)
    except ValueError as error:
        raise ValueError(f"teacher.{error}") from error
    return made, jax.device_put(states.weights(states.split(variables, ema=False)),
                                sharding.replicated(mesh))


def abstract_teacher(data: Data, mesh: Mesh, dtype: str = "float32", *, workdir: str,
                     weights: str = "best", init_from: str = "", model: str = "",
                     stored: str = "") -> tuple[nn.Module, dict]:
    """What `load_teacher` returns, with shapes and places for arrays; no weights are read."""
    made, like = _teacher_shapes(data, mesh, dtype, workdir, model)
    return made, states.weights(like)


def _teacher_shapes(data: Data, mesh: Mesh, dtype: str, workdir: str,
                    name: str) -> tuple[nn.Module, dict]:
    """The model of the run in `workdir` or the zoo's `name`, and the fields of its checkpoints, as
    shapes, replicated."""
    ema = False
    if workdir:
        config = load_stored(Path(workdir))
        model, ema = make_model(config, data), config.step.ema_decay > 0
    else:
        try:
            model = create_model(name, num_classes=data.num_classes, image_size=data.image_size,
                                 dtype=dtype)
        except ValueError as error:
            raise ValueError(str(error).replace("model.name", "teacher.model", 1)) from error
    return model, jax.tree.map(partial(sharding.placed, sharding.replicated(mesh)),
                               states.split(interop.shapes(model), ema))
