"""Every model by name: the rooms' `VARIANTS`, as timm has them."""
from fnmatch import fnmatch

from flax import linen as nn

from vit_efficient.rooms import door, doors


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern: `list_models("asvit*")`."""
    return sorted(name for name in doors("models") if fnmatch(name, pattern))


def create_model(name: str, **options) -> nn.Module:
    """The Flax module of that name, with `num_classes`, `image_size`, `dtype`, its own keywords.

    Raises ValueError for an unknown name or a value that the variant does not allow.
    """
    return door("models", name)(**options)
