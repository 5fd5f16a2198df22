"""Every model by name: the papers' `VARIANTS`, as timm has them.

    list_models("asvit_*")
    model = create_model("asvit_small", num_classes=10, image_size=224)
    variables = model.init(jax.random.key(0), images, train=False)

Runs come here from `engine/assemble.py`, notebooks and other projects by the package's own names.
"""
from collections.abc import Callable
from dataclasses import fields
from fnmatch import fnmatch
from functools import cache
from inspect import Parameter
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient import registry
from vit_efficient.settings.values import Count, Whole, check, hint, keywords, member

# What every model takes, beside its own keywords.
COMMON = {"num_classes": Whole, "image_size": Count, "dtype": Literal["float32", "bfloat16"]}


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern: `list_models("asvit*")`."""
    return sorted(name for name in registry.variants("models") if fnmatch(name, pattern))


def create_model(name: str, *, features_only: bool = False, **options) -> nn.Module:
    """The Flax module of that name.

    Args:
      features_only: the model returns the dict of its method `features` instead of logits: stages'
        `grids` (As-ViT, SReT) or named intermediates. Its variables are the same.
      options: `num_classes` (0: no head, the output is what the head would read), `image_size`,
        `dtype`, and the variant's own keywords.
    Raises:
      ValueError: for an unknown name, or with every option that the variant does not have or allow.
    """
    model = _maker(name)(**_checked(name, options))
    if not features_only:
        return model
    own = {field.name: getattr(model, field.name) for field in fields(model)}
    return _feature_model(type(model))(**own)


def _maker(name: str) -> Callable:
    """The maker of that name; ValueError with the nearest one."""
    return member("model.name", name, registry.variants("models"))


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, each as its annotation asks for it."""
    own = keywords(_maker(name))
    known = COMMON | {key: parameter.annotation for key, parameter in own.items()}
    checked, problems = {}, []
    for key, value in options.items():
        if key == "dtype" and not isinstance(value, str):
            value = jnp.dtype(value).name
        if key not in known:
            problems.append(f"model.{key} = {value!r}: {name} has no such option"
                            f"{hint(key, known)} (it has {', '.join(known)})")
            continue
        try:
            checked[key] = check(value, known[key])
        except ValueError as error:
            problems.append(f"model.{key} = {value!r}: {error}")
    problems += [f"model.{key} is missing: {name} needs it" for key, parameter in own.items()
                 if parameter.default is Parameter.empty and key not in options]
    if problems:
        raise ValueError("\n  ".join(problems))
    return checked


@cache
def _feature_model(model: type[nn.Module]) -> type[nn.Module]:
    """The class of models that return what the `features` of `model` return."""
    def __call__(self, images: jax.Array, **options) -> dict:
        return self.features(images, **options)
    return type(model.__name__, (model,), {"__call__": __call__, "__module__": model.__module__})
