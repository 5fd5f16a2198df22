"""A run from its config: builds every part, loads its teacher, and finds before a compilation what
does not go together.

`assemble` is where a job begins; read it first, then how a teacher is found. What the parts then
compile to stands in `engine/run.py`.
"""
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flax import linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_efficient import registry
from vit_efficient.data.augment import make_augment
from vit_efficient.data.sources import Data, open_data
from vit_efficient.data.stored import Stored
from vit_efficient.engine import optim, sharding, state as states
from vit_efficient.engine.checkpoint import read_weights
from vit_efficient.engine.pretrained import given_weights
from vit_efficient.engine.run import Run, options
from vit_efficient.seams.model import shapes
from vit_efficient.seams.phases import Length
from vit_efficient.settings.store import load_stored
from vit_efficient.settings.values import member
from vit_efficient.zoo import create_model


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
    length = Length(examples=len(data.train), batch_size=config.batch_size, epochs=config.epochs,
                    repeats=augment.repeats)
    if not length.total:
        raise ValueError(f"epochs = {config.epochs:g}: less than one step of {config.batch_size} "
                         "images")
    optimizer = optim.make_optimizer(length, model.no_decay, **config.optim)
    phases, sparsity = (_made(config, seam, length, model) for seam in ("phases", "sparsity"))
    phases = phases.with_topology(sparsity.moves_at)
    mesh = mesh or sharding.make_mesh(**config.mesh)
    sharding.check_batch(mesh, "batch_size", config.batch_size, config.step.accumulate)
    teacher = _teacher(config, data, mesh, read_teacher)
    run = Run(config=config, data=data, augment=augment, model=model, length=length, phases=phases,
              optimizer=optimizer, sparsity=sparsity, mesh=mesh, teacher=teacher)
    jax.eval_shape(partial(augment.on_device, num_classes=data.num_classes),
                   run.abstract_batch(config.batch_size), jax.random.key(0))
    for phase in phases.distinct():
        run.objective(phase)
    return run


def make_model(config: ConfigDict, data: Data) -> nn.Module:
    """The config's model, for the classes and the image size of `data`."""
    return create_model(num_classes=data.num_classes, image_size=data.image_size,
                        dtype=config.dtype, **config.model)


def _made(config: ConfigDict, seam: str, length: Length, model: nn.Module):
    """What the maker that the config's group `seam` names makes of the run."""
    group = config[seam]
    make = member(f"{seam}.name", group.name, registry.variants(seam))
    return make(length, model, **options(group))


def _teacher(config: ConfigDict, data: Data, mesh: Mesh,
             read: Callable) -> tuple[nn.Module, dict] | Stored | None:
    """The config's teacher, None where it has none."""
    given = config.teacher
    ways = [f"teacher.{key}" for key in ("workdir", "init_from", "stored") if given[key]]
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)}: give one of them")
    if bool(given.init_from) != bool(given.model):
        raise ValueError(f"teacher.init_from = {given.init_from!r} and teacher.model = "
                         f"{given.model!r}: they go together, a file and what model it is of")
    if given.stored:
        return _stored(config, data, images=read is load_teacher)
    if given.workdir or given.init_from:
        return read(data, mesh, config.dtype, **given)
    return None


def _stored(config: ConfigDict, data: Data, images: bool) -> Stored:
    """The config's stored teacher, fit for the training set; without `images` for its length."""
    stored = Stored(Path(config.teacher.stored))
    stored.check_augment(config.augment)
    if images:
        stored.check_source(data.train)
    else:
        stored.check_length(len(data.train))
    return stored


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
                               states.split(shapes(model), ema))
