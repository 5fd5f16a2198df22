"""A run: its parts, and the programs and shapes that follow from them.

`engine/assemble.py` builds one from a config; the jobs then ask it for what they compile (`step`),
feed (`batches`) and store (`fingerprint`). Nothing here reads a config beyond its own groups.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_efficient import registry
from vit_efficient.data.augment import Augment
from vit_efficient.data.frames import image_shape
from vit_efficient.data.loader import Batches, train_batches
from vit_efficient.data.sources import Data
from vit_efficient.data.stored import Stored
from vit_efficient.engine import manifest, optim, sharding, state as states, step as steps
from vit_efficient.engine.scores import make_scoring
from vit_efficient.seams.objective import OWN, Forward, Objective
from vit_efficient.seams.phases import Length, Phase, Phases
from vit_efficient.seams.sparsity import Sparsity
from vit_efficient.settings.values import member

OBJECTIVE_SEED = 0x0B7EC7      # sets the objective's own parameters apart from the model's


@dataclass(frozen=True)
class Run:
    """The parts of a run. `teacher` is `None`, a model with its weights, `(model, {"params",
    "collections"})`, or what one has said of the training images."""
    config: ConfigDict
    data: Data
    augment: Augment
    model: nn.Module
    length: Length
    phases: Phases
    optimizer: optim.Optimizer
    sparsity: Sparsity
    mesh: Mesh
    teacher: tuple[nn.Module, dict] | Stored | None

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels."""
        return self.data.image_size

    @property
    def stored(self) -> Stored | None:
        """The teacher where it is a stored one."""
        return self.teacher if isinstance(self.teacher, Stored) else None

    def objective(self, phase: Phase) -> Objective:
        """The objective of `phase`, with its forward function; ValueError where it does not go with
        the model or the teacher."""
        name = self.config.objective.name
        make = member("objective.name", name, registry.variants("objective"))
        trained = self.config.optim.trained
        forward = Forward(model=self.model, phase=phase, scalars=self.phases.scalars,
                          frozen=optim.frozen(trained) if trained else None)
        teacher = self.stored
        if self.teacher and not teacher:
            teacher = Forward(self.teacher[0], Phase(), {})
        made = make(forward, phase, teacher, **options(self.config.objective))
        if set(made.needs) - set(self.model.knobs):
            raise ValueError(
                f"objective.name = {name}: needs a model with the knobs {', '.join(made.needs)}; "
                f"model.name = {self.config.model.name} has "
                f"{', '.join(self.model.knobs) or 'none'}")
        if teacher and ("stored" if self.stored else "live") not in made.teachers:
            raise ValueError(self._unread(made, forward, phase))
        return made

    def _unread(self, made: Objective, forward: Forward, phase: Phase) -> str:
        """What to say of a teacher that the objective `made` does not read."""
        name, given = self.config.objective.name, self.config.teacher
        if self.stored and made.teachers:
            return (f"{self.stored}: objective.name = {name} learns from a teacher that sees its "
                    "images, set teacher.workdir or teacher.init_from")
        kind = "stored" if self.stored else "live"
        reading = []
        for other, make in registry.variants("objective").items():
            try:
                if kind in make(forward, phase, None).teachers:
                    reading.append(other)
            except (TypeError, ValueError):             # not with this model, or without its keys
                continue
        key = next(key for key in ("workdir", "init_from", "stored") if given[key])
        return (f"teacher.{key} = {given[key]}: objective.name = {name} reads no teacher, leave it "
                f"empty or take one of {', '.join(sorted(reading))}")

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
            own = init(jax.random.fold_in(jax.random.key(self.config.seed), OBJECTIVE_SEED))
            variables = variables | {"params": variables["params"] | {OWN: own}}
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
        return {"teacher": self.teacher[1]} if self.teacher and not self.stored else {}

    def fingerprint(self) -> dict:
        """What the checkpoint must know besides the state: which teacher it was."""
        if not self.teacher:
            return {}
        if self.stored:
            return {"teacher": self.stored.fingerprint()}
        return {"teacher": manifest.checksum(manifest.manifest(self.teacher[1]))}

    def abstract_batch(self, size: int, phase: Phase = Phase()) -> dict:
        """Shapes, dtypes and sharding of a batch of `size` examples, as it comes from the host."""
        side = dict(phase.data).get("image_size", self.image_size)
        array = partial(jax.ShapeDtypeStruct, sharding=sharding.batch_sharding(self.mesh))
        batch = {"image": array(image_shape(size, self.data.train.frames, side), jnp.uint8),
                 "label": array((size,), jnp.int32), "weight": array((size,), jnp.float32)}
        if self.stored:
            batch["teacher"] = array((size, *self.stored.shape), jnp.float16)
        return batch

    def batches(self, start: int) -> Batches:
        """The training batches from step `start` on, on the devices; to be closed."""
        return train_batches(self.data, self.augment.train, self.phases, self.config.batch_size,
                             sharding.batch_sharding(self.mesh), self.config.seed, start,
                             self.stored, **self.config.loader)

    def step(self, phase: Phase) -> Callable:
        """The training step of `phase`, jitted, its state donated; ValueError where training lacks
        something, as a teacher."""
        objective = self.objective(phase)
        if objective.missing:
            raise ValueError(objective.missing)
        made = steps.make_step(objective, self.optimizer, self.sparsity, phase,
                               partial(self.augment.on_device, num_classes=self.data.num_classes),
                               **self.config.step)
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(made, donate_argnames="state",
                       out_shardings=(places, sharding.replicated(self.mesh)))

    def scoring(self, phase: Phase) -> Callable:
        """An evaluation's program at the setting of `phase`, jitted: see `scores.make_scoring`."""
        forward = Forward(self.model, phase, self.phases.scalars)
        return jax.jit(make_scoring(self.objective(phase).predictions, forward,
                                    self.augment.normalize))

    def traced_step(self, phase: Phase, size: int | None = None) -> jax.stages.Traced:
        """The training step of `phase` for batches of `size` images (by default the config's),
        to be lowered and compiled."""
        return self.step(phase).trace(
            self.abstract_state, self.frozen(),
            self.abstract_batch(size or self.config.batch_size, phase))


def options(group: ConfigDict) -> dict[str, Any]:
    """The keys of a seam's group without its `name`."""
    return {key: value for key, value in group.items() if key != "name"}
