"""A run, assembled from its config: everything that can be wrong with a config is found here,
before a compilation."""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_efficient import objective, optim, sharding, state as states, step as steps
from vit_efficient.data.augment import Augment, make_augment
from vit_efficient.data.sources import Data, open_data
from vit_efficient.phases import Length, Phase, Phases
from vit_efficient.rooms import door
from vit_efficient.sparsity import Sparsity
from vit_efficient.zoo import create_model


class Run(NamedTuple):
    """The parts of a run. `teacher` is `None` or `(model, variables)`."""
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
        return self.config.data.image_size

    def objective(self, phase: Phase) -> objective.Objective:
        """The objective of `phase`, with its forward function."""
        make = door("objective", self.config.objective.name)
        forward = objective.bind(self.model, phase, self.phases.scalars)
        teacher = objective.bind(self.teacher[0], Phase(), {}) if self.teacher else None
        made = make(forward, phase, teacher, **options(self.config.objective))
        missing = sorted(set(made.needs) - set(self.model.knobs))
        if missing:
            raise ValueError(f"objective.name = {self.config.objective.name}: needs a model with the knobs "
                             f"{', '.join(missing)}; model.name = {self.config.model.name} has "
                             f"{', '.join(self.model.knobs) or 'none'}")
        return made

    def create_state(self) -> states.State:
        """The state before the first step, from the config's seed; jittable."""
        images = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.float32)
        variables = self.model.init(jax.random.key(self.config.seed), images, train=False)
        return states.create(self.config.seed, variables, self.optimizer, self.sparsity,
                             self.config.step.ema_decay > 0)

    def abstract_state(self) -> states.State:
        """The state's shapes, dtypes and shardings."""
        shapes = jax.eval_shape(self.create_state)
        places = sharding.state_sharding(self.mesh, shapes)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)

    def fresh_state(self) -> states.State:
        """The state before the first step, on its devices."""
        return jax.jit(self.create_state, out_shardings=sharding.state_sharding(
            self.mesh, jax.eval_shape(self.create_state)))()

    def frozen(self) -> dict:
        """What no step changes: the teacher's variables, replicated."""
        if not self.teacher:
            return {}
        return {"teacher": jax.device_put(self.teacher[1], sharding.replicated(self.mesh))}

    def abstract_batch(self, size: int, phase: Phase = Phase()) -> dict:
        """Shapes, dtypes and sharding of a training batch of `size` images as it comes from the
        host."""
        side = dict(phase.data).get("image_size", self.image_size)
        array = partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(self.mesh))
        return {"image": array((size, side, side, 3), jnp.uint8), "label": array((size,), jnp.int32),
                "weight": array((size,), jnp.float32)}

    def step(self, phase: Phase) -> Callable:
        """The training step of `phase`, jitted, its state donated."""
        made = steps.make_step(self.objective(phase), self.optimizer, self.sparsity, phase, self.augment.on_device,
                               **self.config.step)
        places = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        return jax.jit(made, donate_argnames="state", out_shardings=(places, sharding.replicated(self.mesh)))


def options(group: ConfigDict) -> dict[str, Any]:
    """A door group's keys without its `name`."""
    return {key: value for key, value in group.items() if key != "name"}


def assemble(config: ConfigDict) -> Run:
    """Builds every part of a run; raises ValueError naming the key for what does not fit
    together."""
    data = open_data(**config.data)
    augment = make_augment(**config.augment)
    model = create_model(num_classes=data.num_classes, image_size=data.image_size, dtype=config.dtype, **config.model)
    if len(data.train) < config.batch_size:
        raise ValueError(f"batch_size = {config.batch_size}: the training set has {len(data.train)} images")
    length = Length(len(data.train), config.batch_size, config.epochs)
    if not length.total:
        raise ValueError(f"epochs = {config.epochs:g}: less than one step of {config.batch_size} images")
    phases = door("phases", config.phases.name)(length, model, **options(config.phases))
    optimizer = optim.make_optimizer(length, model.no_decay, **config.optim)
    sparsity = door("sparsity", config.sparsity.name)(**options(config.sparsity))
    teacher = load_teacher(data, **config.teacher) if config.teacher.workdir else None
    mesh = sharding.make_mesh(**config.mesh)
    sharding.check_batch(mesh, "batch_size", config.batch_size, config.step.accumulate)
    run = Run(config, data, augment, model, length, phases, optimizer, sparsity, mesh, teacher)
    for phase in phases.distinct():
        run.objective(phase)
    return run


def load_teacher(data: Data, *, workdir: str = "", weights: str = "best") -> tuple[nn.Module, dict]:
    """`(model, variables)` of the run in `workdir`, at its step `weights` ("best", "latest" or a
    number)."""
    from vit_efficient.checkpoint import read_weights
    from vit_efficient.config import load_stored
    config = load_stored(Path(workdir))
    model = create_model(num_classes=data.num_classes, image_size=data.image_size, dtype=config.dtype, **config.model)
    return model, read_weights(Path(workdir), weights)
