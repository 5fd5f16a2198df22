"""Efficient vision transformers in JAX: Scala, DVT, As-ViT, SReT and SViTE under one command.

    import vit_efficient
    config = vit_efficient.config("asvit:digits", {"optim.lr": 1e-3})
    model = vit_efficient.create_model("sret_lt", num_classes=10)
    variables = vit_efficient.from_torch(model, state_dict)

These names are imported when they are asked for. (`config` is a function and `settings` the package
with its parts, so that neither hides the other.)
"""
import importlib

# Public name -> "module:name", or the module itself.
_PUBLIC = {
    "config": "vit_efficient.settings.store:load",
    "create_model": "vit_efficient.zoo:create_model",
    "list_models": "vit_efficient.zoo:list_models",
    "from_torch": "vit_efficient.weights.interop:from_torch",
    "to_torch": "vit_efficient.weights.interop:to_torch",
    "interop": "vit_efficient.weights.interop",
    "zoo": "vit_efficient.zoo",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, member = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, member) if member else found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
