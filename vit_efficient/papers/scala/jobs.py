"""Scala's own jobs: an evaluation of every width of one set of weights, an export of one as a model
of its own, a benchmark of them all."""
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient import registry
from vit_efficient.engine import machine, start as starts, state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.exports import write_export
from vit_efficient.engine.overview import parameters
from vit_efficient.engine.validation import Validation
from vit_efficient.layers.slimmable import Slimmable
from vit_efficient.measure import speed
from vit_efficient.measure.tables import Column, as_text, draw, score, write_csv
from vit_efficient.measure.turns import in_turns
from vit_efficient.papers.scala import timing
from vit_efficient.papers.scala.models import Scala
from vit_efficient.papers.scala.widths import width_name
from vit_efficient.seams.model import shapes
from vit_efficient.settings.values import Count, Fraction, keywords
from vit_efficient.weights import files
from vit_efficient.zoo import COMMON, create_model


def evaluate(config: ConfigDict, workdir: Path, *, ratios: tuple[Fraction, ...] | None = None,
             split: Literal["train", "val"] = "val", weights: str = "best", rounds: Count = 5,
             out: str = "") -> list[dict[str, Any]]:
    """Scores a checkpoint of `workdir`, or where it has none the weights of `init_from`, at many
    widths; prints a table, returns its rows, stores it as CSV and draws it. A model of one width,
    as a DeiT beside it, has the engine's evaluation, whose scores are one row.

    Args:
      ratios: widths, by default all that the model is trained at; others that leave each head
        whole channels are scored too and marked as untrained.
      split, weights: as in every evaluation.
      rounds: measurements of a batch's time at each width, in turns; their median counts.
      out: the CSV file, a picture with the same stem beside it; by default WORKDIR/widths.csv.
    Raises:
      ValueError: a width that the model cannot have, with those that it can; no such checkpoint; a
        model without a trained classifier.
    """
    if "granularity" not in config.model:
        _check_one_width(config, "ratios", ratios)
        evaluate_one = registry.load_job("evaluate")
        return [evaluate_one(config, workdir, split=split, weights=weights)]
    machine.refuse_accidental_cpu()
    if config.objective.get("signal", "logits") != "logits":
        raise ValueError(f"objective.signal = {config.objective.signal}: a foundation model's "
                         "features train no classifier, there is nothing to score")
    free = create_model(image_size=config.data.image_size,
                        **{**config.model, "granularity": None})
    trained = _trained(config, free)
    widths = tuple(map(free.width_ratio, ratios)) if ratios else trained
    run = assemble(_evaluating(config, widths))
    model = run.model
    machine.compile_cache()
    step, fields = starts.weights(run, Path(workdir), weights)
    values = Validation(run, split, **config.validation)(fields, step)
    seconds = in_turns(timing.forward_passes(run, states.weights(fields), widths), rounds)
    rows = []
    for ratio in widths:
        net, end = model.subnet(ratio), f"_{width_name(ratio)}"
        found = {name.removesuffix(end): value for name, value in values.items()
                 if name.endswith(end)}
        rows.append({
            "ratio": ratio, "trained": ratio in trained,
            "channels": round(ratio * model.widths[0]),
            "parameters": parameters(shapes(net)["params"]),
            "macs": sum(net.macs().values()),
            **({"flops": model.flops(ratio=ratio)} if isinstance(model, Scala) else {}), **found,
            "images_per_second": run.config.batch_size / float(np.median(seconds[ratio]))})
    if jax.process_index() == 0:
        print(f"{config.model.name}, step {step}, {len(getattr(run.data, split))} images of "
              f"{split}\n{table(rows)}")
        _store(rows, Path(out or Path(workdir) / "widths.csv"), config.model.name)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `evaluate` as text; widths that were not trained have a star."""
    costs = [Column(unit, 10, lambda row, key=key: f"{row[key] / 1e9:.4g}")
             for key, unit in (("macs", "GMACs"), ("flops", "GFLOPs")) if key in rows[0]]
    text = as_text(rows, [
        Column("width", 8, lambda row: f"{row['ratio']:g}{' ' if row['trained'] else '*'}"),
        Column("channels", 10, lambda row: str(row["channels"])),
        Column("parameters", 13, lambda row: f"{row['parameters']:,}"), *costs,
        *(score(name) for name in rows[0] if name.startswith("top")),
        Column("images/s", 11, lambda row: f"{row['images_per_second']:.1f}")])
    everywhere = all(row["trained"] for row in rows)
    return text if everywhere else f"{text}\n* never trained at this width"


def export(config: ConfigDict, workdir: Path, *, out: str, ratio: Fraction | None = None,
           force: bool = False, weights: str | None = None,
           kind: Literal["raw", "ema"] | None = None) -> dict[str, Any]:
    """Writes a checkpoint of `workdir`, or where it has none the weights of `init_from`, as the
    authors' file; with a `ratio` that width alone, as a model of its own: of a Scala a DeiT in
    timm's layout, with norms of epsilon 1e-5.

    The narrow model has the heads of the full one and the ordinary scale of the attention, which
    its queries' weights make up for. Before anything is written its logits are compared with those
    of the full model at that width, and the difference is printed.

    Args:
      out: FILE.pth or FILE.safetensors, a new file.
      force: also where the width was never trained.
      weights, kind: as in every export.
    Returns:
      What the file says of its model. Raises ValueError where there are no such weights, and for a
      width that the model cannot have or was not trained at.
    """
    if ratio is None:
        export_all = registry.load_job("export")
        return export_all(config, workdir, out=out, weights=weights, kind=kind)
    if "granularity" not in config.model:
        _check_one_width(config, "ratio", ratio)
    path = Path(out).expanduser()
    files.check_new(path)
    run = assemble(config) if starts.is_given(config, Path(workdir)) else None
    model, variables, about = starts.chosen(run, Path(workdir), weights, kind)
    free, trained = model.clone(granularity=None), _trained(config, model)
    ratio = free.width_ratio(ratio)
    if ratio not in trained and not force:
        raise ValueError(f"--ratio={ratio:g}: never trained, the widths are "
                         f"{', '.join(f'{width:g}' for width in trained)}; --force=true exports it "
                         "all the same")
    net, narrow = free.subnet(ratio), free.sliced(variables, ratio)
    difference = _difference(free, variables, net, narrow, ratio)
    options = free.narrow_options(ratio)
    make = registry.variants("models")[options["name"]]
    known = keywords(make).keys() - {"smallest_ratio", "granularity"}
    own = {key: value for key, value in about["model"].items() if key in {*COMMON, *known}}
    about = about | {"model": own | options,
                     "slice_of": {"model": config.model.name, "ratio": ratio}}
    if isinstance(free, Scala):
        about["timm"] = {"embed_dim": net.width, "num_heads": net.num_heads,
                         "layer_norm_eps": net.epsilon}
    sizes = ", ".join(f"{key} = {value}" for key, value in about.get("timm", options).items())
    write_export(path, net, narrow, about,
                 note=f"at width {ratio:g}: {options['name']} of {sizes}; its logits are within "
                      f"{difference:.1e} of the full model's at this width")
    return about


def benchmark(config: ConfigDict, workdir: Path, *, rounds: Count = 5, steps: Count = 10,
              input_batches: Count = 20, against: Literal["timm"] | None = None,
              out: str = "") -> dict:
    """The engine's benchmark, whose flags these are; then the evaluation pass of each width beside
    the widest one's, and of a run that trains many widths the gradients of a step beside those of
    plain DeiTs of its widths. The time of these two is processor time on a CPU."""
    machine.refuse_accidental_cpu()
    run = assemble(config)
    result = speed.measure(run, rounds, steps, input_batches, against)
    text = speed.table(result)
    if "ratio" in run.model.knobs:
        result["widths"] = timing.time_widths(run, rounds, steps)
        if config.objective.name == "scala":
            result["nets"] = timing.time_nets(run, rounds, steps)
        text += "\n" + timing.table(result)
    speed.report(result, text, out)
    return result


def _check_one_width(config: ConfigDict, flag: str, given: Any) -> None:
    """ValueError where a flag names a width of a model that has one."""
    if given:
        raise ValueError(f"--{flag}={given}: model.name = {config.model.name} has one width")


def _evaluating(config: ConfigDict, widths: tuple[float, ...]) -> ConfigDict:
    """The config whose evaluation scores `widths`, trained or not, without a teacher."""
    config = ConfigDict(config.to_dict())
    config.teacher.update(dict(workdir="", init_from="", model="", stored=""))
    config.objective = ConfigDict(dict(name="separate", label_smoothing=0.0, ratios=widths))
    config.model.granularity = None
    return config


def _trained(config: ConfigDict, model: Slimmable) -> tuple[float, ...]:
    """The widths that the config trains; the full one alone where its objective is another."""
    trains = config.objective.name in ("scala", "probe", "foundation")
    if not trains or not config.model.granularity:
        return (model.largest_ratio,)
    return model.clone(granularity=config.model.granularity).ratios


def _store(rows: list[dict[str, Any]], path: Path, name: str) -> None:
    """The rows as CSV, and top-1 over multiply-adds and over time in a picture beside it."""
    write_csv(rows, path)
    draw(rows, path.with_suffix(".png"), title=f"{name} at each width",
         name=lambda row: f"{row['ratio']:g}" + "*" * (not row["trained"]),
         costs={"multiply-adds of an image, millions": lambda row: row["macs"] / 1e6,
                "milliseconds an image": lambda row: 1000 / row["images_per_second"]},
         joined=lambda row: row["trained"])


def _difference(model, variables: dict, net, narrow: dict, ratio: float) -> float:
    """The largest difference of the logits of both on noise, in float32, over their deviation."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, model.image_size, model.image_size, 3)).astype(np.float32)
    full, alone = model.clone(dtype=np.dtype("float32")), net.clone(dtype=np.dtype("float32"))
    expected = jax.jit(partial(full.apply, ratio=ratio))(variables, images)
    found = jax.jit(alone.apply)(narrow, images)
    return float(np.abs(found - expected).max() / np.std(expected))
