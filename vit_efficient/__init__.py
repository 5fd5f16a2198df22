"""Efficient vision transformers in JAX: Scala, DVT, As-ViT, SReT and SViTE under one command.

    import vit_efficient
    config = vit_efficient.config("asvit:digits", {"optim.lr": 1e-3})
"""
# `vit_efficient.config` is this function and hides the submodule of that name: import from it by
# `from vit_efficient.config import ...`, never by `import vit_efficient.config as ...`.
from vit_efficient.config import load as config

__all__ = ["config"]
