"""The model seam: what a paper's Flax module declares to the engine, beside its pass.

A paper's `models.py` holds a table `VARIANTS` of makers by name,

    make(num_classes=1000, image_size=224, dtype="float32", *, width: Count = 384, ...) -> Model

whose keyword-only arguments are the keys of the config group `model`, with type, range and default.
Every maker has these options, which the recipes, the zoo's tests and the other papers rely on:

    drop_rate: Rate = 0.0       dropout of the embedding, of attention's projection and of the MLPs
    attn_drop_rate: Rate = 0.0  dropout of attention's weights
    drop_path: Rate = 0.1       stochastic depth: the rate of the last block, the others rise to it
    scan: bool = False          equal blocks as one compiled loop (`layers.blocks.run_blocks`)
    remat: bool = False         activations of a block are computed again in the backward pass

and raises ValueError naming the key where sizes do not fit together. An example, whole:

    class Linear(Model, nn.Module):
        num_classes: int
        image_size: int
        dtype: jnp.dtype

        @nn.compact
        def features(self, images, *, train=False):
            pixels = images.reshape(len(images), -1)
            return {"logits": nn.Dense(self.num_classes, name="head")(pixels)}

        def macs(self):
            return {"head": 3 * self.image_size ** 2 * self.num_classes}

        order = ("head",)

    def linear(num_classes=1000, image_size=224, dtype="float32", *, drop_rate: Rate = 0.0,
               attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.0, scan: bool = False,
               remat: bool = False):
        return Linear(num_classes, image_size, jnp.dtype(dtype))

    VARIANTS = {"linear": linear}
"""
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Model:
    """A mixin for a Flax module with the fields `num_classes`, `image_size` and `dtype`; the engine
    asks a model for nothing that does not stand here. (A plain class: a base that is itself an
    `nn.Module` would forbid fields without a default.)

    `knobs` are the keywords of the pass that change it and not its weights, as a stride or an exit:
    a phase or an objective sets them.
    `no_decay` are last components of parameter paths that weight decay leaves out, beside all of
    one axis.
    `order` are the components of the official names in the order in which the official
    constructors declare them; it decides the order of an exported file.
    `optional` gives for a component of an official name the option of the model that brings it, for
    the error that a file without it gets.
    `container` is the key of the state_dict in an official `.pth`, "" for a bare one.
    `class_token` is True where `features` gives `tokens` whose first is a class token.
    `prefix` is the number of tokens before the patches' in `tokens`.
    `distilled` is True where a training pass returns the pair of logits (class, distillation).
    `resize(table, shape)` resizes a position table to another grid, with a ValueError for a shape
    that is none; None resizes by torch's bicubic.
    """
    knobs: ClassVar[tuple[str, ...]] = ()
    no_decay: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[dict[str, str]] = {}
    container: ClassVar[str] = "model"
    class_token: ClassVar[bool] = False
    prefix: ClassVar[int] = 0
    distilled: ClassVar[bool] = False
    resize: ClassVar[Callable[[np.ndarray, tuple[int, ...]], jax.Array] | None] = None

    def __call__(self, images: jax.Array, *, train: bool = False, **knobs) -> Any:
        """The logits float32 [B, K] of normalised images [B, S, S, 3]; a pass in training drops."""
        return self.features(images, train=train, **knobs)["logits"]

    def features(self, images: jax.Array, *, train: bool = False, **knobs) -> dict:
        """The pass (`nn.compact`): a dict of named intermediates, of which `logits` is what a call
        returns: float32 [B, K], with `num_classes=0` what the head would read. Must be given."""
        raise NotImplementedError(f"{type(self).__name__} has no `features`")

    def macs(self, **knobs) -> dict[str, int]:
        """Multiply-adds of one image in a forward pass by part, as the model's paper counts them,
        under its knobs. Must be given: a run's costs, its time left and the plan rest on it."""
        raise NotImplementedError(f"{type(self).__name__} does not say its `macs`")

    def extras(self) -> dict[str, Any]:
        """What an official `.pth` has beside the weights."""
        return {}

    def official_names(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Every official name of the array at `path` (without its collection); () for the one name
        that the rule of `weights/names.py` gives."""
        return ()


@lru_cache(maxsize=128)
def shapes(model: nn.Module) -> dict:
    """Shapes and dtypes of the model's variables, not to be changed; nothing is computed."""
    side = model.image_size
    return jax.eval_shape(lambda: model.init(
        jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))
