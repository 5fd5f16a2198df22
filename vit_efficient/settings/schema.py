"""The schema of a config: which groups there are, whose arguments they hold, what they may be.

A group is the keyword-only arguments of one function (GROUPS), so its keys, types, ranges and
defaults stand in that signature, and a key that nobody reads is an error by itself. A group of a
seam (SEAMS) has a `name` and the arguments of the maker of that name, the engine's or a paper's. A
group named like a job holds that job's arguments. A resolved config holds every key.

`settings/store.py` calls `resolve`; read that first, then `schema`, then what words the errors.
"""
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, Literal

from ml_collections import ConfigDict

from vit_efficient import registry
from vit_efficient.settings.values import (
    Count,
    Positive,
    Whole,
    allowed,
    check,
    hint,
    keywords,
    nearest,
    parse,
)

GROUPS = {
    "data": "vit_efficient.data.sources:open_data",
    "augment": "vit_efficient.data.augment:make_augment",
    "loader": "vit_efficient.data.loader:train_batches",
    "optim": "vit_efficient.engine.optim:make_optimizer",
    "step": "vit_efficient.engine.step:make_step",
    "teacher": "vit_efficient.engine.assemble:load_teacher",
    "init": "vit_efficient.engine.pretrained:given_weights",
    "validation": "vit_efficient.engine.validation:Validation",
    "mesh": "vit_efficient.engine.sharding:make_mesh",
    "checkpoint": "vit_efficient.engine.checkpoint:Checkpoints",
    "log": "vit_efficient.jobs.train:Loop",
}
# Group of a seam -> the papers' file with its variants, and the name where the config says none.
SEAMS = {
    "model": ("models", None),
    "objective": ("objective", "supervised"),
    "sparsity": ("sparsity", "dense"),
    "phases": ("phases", "constant"),
}

Flat = dict[str, Any]                                     # {"seed": 0, "optim.lr": 1e-3}


def run(*, recipe: str = "", seed: Whole = 0, epochs: Positive, batch_size: Count,
        dtype: Literal["bfloat16", "float32"] = "bfloat16", init_from: str = "") -> None:
    """The keys outside of groups; never called.

    Args:
      recipe: the config's file and words ("asvit:digits"), set on loading; the file's name is that
        of the paper whose jobs it has.
      seed: what every random number of the run follows from.
      epochs: length of the run, in passes over the training set.
      batch_size: images of an optimiser step, on all devices together.
      dtype: of activations and matrix products; parameters and losses are float32.
      init_from: the weights that the run starts from: an official file, an export, the workdir of
        another run or one of its steps (DIR/checkpoints/STEP); "" starts from random ones.
    """


def flat(config: Mapping[str, Any]) -> Flat:
    """{"seed": 0, "optim": {"lr": 1}} as {"seed": 0, "optim.lr": 1}; unknown empty groups stay."""
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    result: Flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and (value or name in (*GROUPS, *SEAMS)):
            result.update({f"{name}.{key}": member for key, member in value.items()})
        else:
            result[name] = value
    return result


def resolve(config: Mapping[str, Any], overrides: Mapping[str, Any] = {},
            source: str = "config") -> ConfigDict:
    """`config` with `overrides` and every default filled in, checked; locked and type-safe.

    An override of `model.name` keeps the group's other keys where the new maker takes them too,
    except those that its name stands for (`asvit_small` is `asvit` with an `arch`).
    Raises ValueError with everything that is wrong; `source` is the file that its text names.
    """
    values = flat(config)
    keys, unsure = schema(values | overrides)
    for key in _left_behind(values, overrides, keys):
        del values[key]
    values |= overrides
    texts = {key for key, value in overrides.items() if isinstance(value, str)}
    problems, full = [], {}
    for key, value in values.items():
        if key not in keys and key.partition(".")[0] not in unsure:
            shown = value if key in texts else repr(value)
            problems.append(f"{key} = {shown}: {_unknown(key, keys)}")
    for key, parameter in keys.items():
        group, _, name = key.rpartition(".")
        value = values.get(key, parameter.default)
        if value is Parameter.empty:
            if group in ("", *GROUPS, *SEAMS):          # a job's flag may still say what is missing
                problems.append(f"{key} is missing: must be {allowed(parameter.annotation)}")
            continue
        place = full.setdefault(group, {}) if group else full
        try:
            place[name] = (parse if key in texts else check)(value, parameter.annotation)
        except ValueError as error:
            problems.append(f"{key} = {value if key in texts else repr(value)}: {error}")
    if problems:
        raise ValueError("\n  ".join([f"{source}:", *problems] if problems[1:] else
                                     [f"{source}: {problems[0]}"]))
    return ConfigDict(full, type_safe=True).lock()


def schema(values: Flat) -> tuple[dict[str, Parameter], set[str]]:
    """Every key that a config may have, and the groups of seams whose other keys cannot be known.

    `values` decides the variants by its names, and which jobs have groups.
    """
    keys, unsure = keywords(run), set()

    def add(group: str, function: Callable) -> None:
        keys.update({f"{group}.{name}": p for name, p in keywords(function).items()})

    for group, place in GROUPS.items():
        add(group, registry.load(place))
    for group, (file, usual) in SEAMS.items():
        variants = registry.variants(file)
        default = Parameter.empty if usual is None else usual
        keys[f"{group}.name"] = Parameter("name", Parameter.KEYWORD_ONLY, default=default,
                                          annotation=Literal[tuple(sorted(variants))])
        name = values.get(f"{group}.name", usual)
        if isinstance(name, str) and name in variants:
            add(group, variants[name])
        else:
            unsure.add(group)
    others = {key.partition(".")[0] for key in values} - {*keywords(run), *GROUPS, *SEAMS}
    paper = paper_of(values)
    for group in sorted(others.intersection(registry.jobs(paper) if others else ())):
        add(group, registry.load_job(group, paper))
    return keys, unsure


def paper_of(config: Mapping[str, Any]) -> str:
    """The paper whose jobs a config has: the name of its recipe's file, or ""."""
    return str(config.get("recipe", "")).partition(":")[0]


def find_job(name: str, paper: str) -> Callable:
    """The job of that name for a config of `paper`; ValueError with the nearest name if none is."""
    names = registry.jobs(paper)
    if name not in names:
        raise ValueError(f"--job={name}: no such job, {nearest(name, names)}")
    return registry.load_job(name, paper)


def _left_behind(values: Flat, overrides: Mapping[str, Any],
                 keys: Mapping[str, Parameter]) -> list[str]:
    """The keys of `values` that belonged to a variant which `overrides` replaces."""
    former, left = schema(values)[0], []
    for group, (file, _) in SEAMS.items():
        if f"{group}.name" in overrides:
            make = registry.variants(file).get(str(overrides[f"{group}.name"]))
            bound = {f"{group}.{key}" for key in getattr(make, "keywords", ())}     # of a partial
            left += [key for key in values if key.startswith(f"{group}.") and key in former
                     and (key not in keys or key in bound)]
    return left


def _unknown(key: str, keys: Mapping[str, Parameter]) -> str:
    """What is wrong with a key that is none of `keys`, and which there are."""
    group = key.partition(".")[0]
    inside = [name.partition(".")[2] for name in keys if name.startswith(f"{group}.")]
    if inside:
        what = "it is a group" if key == group else f"no such key{hint(key, keys)}"
        return f"{what} ({group} has {', '.join(inside)})"
    groups = dict.fromkeys(name.partition(".")[0] for name in keys)
    return "no such key" + (hint(key, keys) or f" (there are {', '.join(groups)})")
