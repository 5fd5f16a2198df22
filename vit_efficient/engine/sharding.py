"""Where arrays live: one named mesh, one rule by shape.

`data` splits the batch; `fsdp` splits the batch and the state. Everything that is compiled gets its
places from here, and XLA's partitioner writes the collectives:

    mesh = make_mesh(data=4, fsdp=2)                  # 8 devices
    places = state_sharding(mesh, jax.eval_shape(create_state))
    jax.jit(create_state, out_shardings=places)()     # born sharded, never whole on one device
"""
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from vit_efficient.settings.values import Count

SMALL = 4096      # elements: below this a gather costs more than the copy that it saves


def make_mesh(devices: Sequence[jax.Device] | None = None, *, data: Count | None = None,
              fsdp: Count = 1) -> Mesh:
    """Axes `data` x `fsdp` over `devices`, by default all; `data=None` takes what `fsdp` leaves."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = data or max(count // fsdp, 1)
    if data * fsdp != count:
        raise ValueError(f"mesh.data = {data}, mesh.fsdp = {fsdp}: their product must be the "
                         f"{count} devices that are there; mesh.fsdp may be a divisor of {count}")
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2,
                         devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(mesh: Mesh, key: str, size: int, accumulate: int = 1) -> None:
    """Raises ValueError unless `size` images split over devices and a step's `accumulate` parts."""
    unit = mesh.size * accumulate
    if size % unit:
        near = max(round(size / unit), 1) * unit
        parts = f" and step.accumulate = {accumulate}" if accumulate > 1 else ""
        raise ValueError(f"{key} = {size}: must be a multiple of {unit} "
                         f"({mesh.size} devices{parts}), the nearest is {near}")


def spec(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Splits the largest axis that `fsdp` divides (the last of equals); replicates small arrays."""
    parts = mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < SMALL:
        return PartitionSpec()
    best = max(axes, key=lambda i: (shape[i], i))
    return PartitionSpec(*(["fsdp" if i == best else None for i in range(best + 1)]))


def state_sharding(mesh: Mesh, tree):
    """A NamedSharding for every leaf: parameters, moments, EMA and masks of one shape lie alike."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(mesh, leaf.shape)), tree)


def abstract(mesh: Mesh, tree):
    """Shapes, dtypes and places of a state's leaves."""
    return jax.tree.map(lambda leaf, place: placed(place, leaf), tree, state_sharding(mesh, tree))


def placed(place: NamedSharding, leaf) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a leaf, at `place`."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
