"""DVT's own jobs: thresholds (`calibrate`), an evaluation of exits and budgets, an export.

    python -m vit_efficient.main --workdir=DIR --job=calibrate [--budget=1.5] [--on=val]
    python -m vit_efficient.main --workdir=DIR --job=evaluate [--thresholds=0.8,0.6,0]
    python -m vit_efficient.main --workdir=DIR --job=export --out=FILE.pth

The three modes of the authors' script: `--mode=stored` prints what a file or a workdir holds,
`--mode=given` applies its thresholds to the validation images, and `calibrate` finds new ones.
A model of one exit, as a T2T-ViT beside the cascade, has the engine's evaluation and export.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from ml_collections import ConfigDict
import numpy as np

from vit_efficient import registry
from vit_efficient.engine import machine, pretrained, start as starts, state as states
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.exports import write_export
from vit_efficient.engine.overview import parameters
from vit_efficient.engine.run import Run
from vit_efficient.engine.validation import Validation
from vit_efficient.measure.tables import Column, as_text, score
from vit_efficient.papers.dvt import calibration
from vit_efficient.papers.dvt.budget import check_budgets, outcome
from vit_efficient.papers.dvt.calibration import FOLDER, Criterion, Crops
from vit_efficient.papers.dvt.transformer import Transformer
from vit_efficient.seams.model import shapes
from vit_efficient.settings.values import Count, Positive
from vit_efficient.weights import files

SHOWN = 10              # budgets in a table


def calibrate(config: ConfigDict, workdir: Path, *, images: Count = 50_000,
              crops: Crops = "random", on: Literal["train", "val"] = "train",
              budget: tuple[Positive, ...] = (), criterion: Criterion = "confidence",
              weights: str = "best", out: str = "") -> dict[str, Any]:
    """Finds thresholds for the authors' 59 budgets, the best ones at the same costs, and those for
    given budgets; stores them with every image's confidences, and prints a table.

    Args:
      images: so many training images, drawn by the seed, on which thresholds are found.
      crops: "random", as the authors' script crops them, or "center".
      on: "val" finds them on a random half of the validation images and scores the other half.
      budget: mean multiply-adds of an image, G.
      criterion: what an image must be sure by, of its softmax: the largest value, minus the
        entropy, the margin of the two largest, or nothing at all.
      weights: as in every evaluation.
      out: the folder; by default WORKDIR/calibration.
    Returns:
      What `budgets.json` holds. Raises ValueError for a model of one exit, a budget out of reach or
      weights that are not there.
    """
    run, step, chosen = _opened(config, Path(workdir), weights, "calibrate")
    costs = run.model.extras()["flops"]
    check_budgets(budget, costs)
    folder = Path(out or Path(workdir) / FOLDER).expanduser()
    val = calibration.answers(run, chosen, "val", folder)
    if on == "val":
        solved, scored = calibration.halves(val, config.seed)
    else:
        scored = val
        solved = calibration.answers(run, chosen, "train", folder, images=images, crops=crops)
    _warn(solved, run)
    result = calibration.calibrated(solved, scored, costs, criterion=criterion, seed=config.seed,
                                    budgets=budget)
    result |= {"weights": calibration.fingerprint(chosen), "step": step, "on": on,
               "crops": crops if on == "train" else "center"}
    if jax.process_index() == 0:
        calibration.store(result, folder, config.model.name)
        print(f"{config.model.name}, step {step}: thresholds of {result['solved_images']} images "
              f"of {on}, scored on {result['scored_images']} of val\n{table(result)}")
        print("\n".join(official_lines(result)))
    return result


def evaluate(config: ConfigDict, workdir: Path, *,
             thresholds: tuple[float, ...] | None = None,
             mode: Literal["run", "stored", "given"] = "run",
             split: Literal["train", "val"] = "val", weights: str = "best") -> dict[str, Any]:
    """Scores every exit of a checkpoint of `workdir`, or of `init_from`, and where thresholds are
    known ten budgets; prints tables and returns their rows. A model of one exit has the engine's
    evaluation.

    Args:
      thresholds: one for each exit, of the largest probability; the last is 0 or below.
      mode: "stored" prints what a calibrated workdir or an official file holds, without data or
        model; "given" applies its thresholds to the split.
      split, weights: as in every evaluation.
    """
    if "splits" not in config.model:
        if thresholds or mode != "run":
            flag = f"--mode={mode}" if mode != "run" else "--thresholds"
            raise ValueError(f"{flag}: model.name = {config.model.name} has one exit")
        return registry.load_job("evaluate")(config, workdir, split=split, weights=weights)
    if mode == "stored":
        held = known(config, Path(workdir))
        print("\n".join(official_lines(held)))
        return held
    given = known(config, Path(workdir)) if mode == "given" else None
    run, step, chosen = _opened(config, Path(workdir), weights, "evaluate")
    exits = len(run.model.splits)
    if thresholds is not None:
        check_thresholds("--thresholds", thresholds, exits)
    if given:
        check_thresholds(f"the thresholds of {given['where']}", given["thresholds"], exits)
    values = Validation(run, split, **config.validation)(
        {**chosen, "ema": {}}, step)
    rows = exit_rows(run, values)
    print(f"{config.model.name}, step {step}, {len(getattr(run.data, split))} images of {split}\n"
          f"{exits_table(rows)}")
    result: dict[str, Any] = {"exits": rows}
    if thresholds is not None or given:
        folder = Path(workdir) / FOLDER
        found = calibration.answers(run, chosen, split, folder)
        costs = run.model.extras()["flops"]
        asked = [thresholds] if thresholds is not None else given["thresholds"]
        outcomes = [outcome(found.confidence, found.hits, np.float32(row), costs)
                    for row in asked]
        result |= {"flops": costs, "anytime": (100 * found.hits.mean(1)).tolist(), "rows": [
            {"kind": "given", "thresholds": list(map(float, row)), "scored_cost": each.cost,
             "scored_top1": 100 * each.accuracy, "scored_shares": each.shares.tolist()}
            for row, each in zip(asked, outcomes)]}
        print(table(result))
        print("\n".join(official_lines(result)))
    return result


def export(config: ConfigDict, workdir: Path, *, out: str, weights: str | None = None,
           kind: Literal["raw", "ema"] | None = None) -> dict[str, Any]:
    """Writes a checkpoint of `workdir`, or where it has none the weights of `init_from`, as the
    authors' file: with costs, and where the workdir is calibrated with thresholds and accuracies.

    Args:
      out: FILE.pth or FILE.safetensors, a new file; a `.safetensors` has room for weights alone.
      weights, kind: as in every export.
    """
    path, workdir = Path(out).expanduser(), Path(workdir)
    files.check_new(path)
    run = assemble(config) if starts.is_given(config, workdir) else None
    model, variables, about = starts.chosen(run, workdir, weights, kind)
    held, extras = calibration.load(workdir / FOLDER), {}
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    if held:
        mine = calibration.fingerprint({"params": variables["params"],
                                        "collections": collections})
        if held["weights"] == mine:
            extras = official_entries(held)
        else:
            print(f"{workdir / FOLDER}: its thresholds are of other weights (step "
                  f"{held['step']}), they were left out")
    write_export(path, model, variables, about, extras=extras)
    return about


def known(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The thresholds, costs and accuracies that a calibrated workdir or the official file in
    `init_from` holds; ValueError where neither does, with what to type."""
    if held := calibration.load(workdir / FOLDER):
        rows = [row for row in held["rows"] if row["kind"] == "official"]
        return held | {"rows": rows, "thresholds": [row["thresholds"] for row in rows],
                       "where": str(workdir / FOLDER)}
    if not config.init_from:
        raise ValueError(f"{workdir}: is not calibrated: --job=calibrate --workdir={workdir} finds "
                         "its thresholds, or --config.init_from=FILE names a file that has some")
    there = pretrained.beside(Path(config.init_from).expanduser())
    missing = [key for key in ("flops", "dynamic_threshold") if key not in there]
    if missing:
        raise ValueError(f"init_from = {config.init_from}: holds no {' and no '.join(missing)} "
                         f"(beside the weights it holds {', '.join(there) or 'nothing'})")
    costs, accuracies = np.array(there.get("budgeted_batch_classification", [[], []]), float)
    flops = [float(cost) for cost in there["flops"]]
    if any(b <= a for a, b in zip([0.0, *flops], flops)):
        raise ValueError(f"init_from = {config.init_from}: flops = {flops} must increase")
    return {"flops": flops, "where": config.init_from,
            "anytime": [float(top1) for top1 in there.get("anytime_classification", [])],
            "thresholds": np.asarray(there["dynamic_threshold"], float).tolist(),
            "rows": [{"kind": "official", "scored_cost": float(cost), "scored_top1": float(top1)}
                     for cost, top1 in zip(costs, accuracies)]}


def check_thresholds(key: str, given: Sequence, exits: int) -> None:
    """ValueError unless `given` are thresholds of so many exits, [E] or [budgets, E]."""
    rows = np.atleast_2d(np.asarray(given, float))
    if rows.shape[-1] != exits or rows.ndim != 2:
        raise ValueError(f"{key}: {rows.shape[-1]} of them, this model has {exits} exits")
    if np.isnan(rows).any():
        raise ValueError(f"{key}: a threshold is not a number")
    if (rows[:, -1] > 0).any():
        raise ValueError(f"{key}: the last one is {rows[:, -1].max():g}, it must be 0 or below: "
                         "everybody leaves at the last exit")
    if (rows[:, 0] > 1).all():
        calibration.log.warning("%s: no image can leave at the first exit", key)


def exit_rows(run: Run, values: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each exit: grid, parameters and multiply-adds up to it, its scores."""
    model, total, found = run.model, 0, []
    params = shapes(model)["params"]
    for k, (name, fields) in enumerate(model.stages().items(), 1):
        total += parameters(params[name])
        scores = {metric: values[f"{metric}_exit{k}"] for metric in ("top1", "top5")
                  if f"{metric}_exit{k}" in values}
        found.append({"exit": k, "grid": Transformer(**fields, parent=None).sides[-1],
                      "parameters": total, "macs": sum(model.macs(exit=k).values()), **scores})
    return found


def exits_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `exit_rows` as text."""
    return as_text(rows, [
        Column("exit", 6, lambda row: str(row["exit"])),
        Column("grid", 9, lambda row: f"{row['grid']}x{row['grid']}"),
        Column("parameters", 13, lambda row: f"{row['parameters']:,}"),
        Column("GMACs", 10, lambda row: f"{row['macs'] / 1e9:.4g}"),
        *(score(name) for name in rows[0] if name.startswith("top"))])


def table(result: dict[str, Any]) -> str:
    """Ten of the budgets of `calibrated`, from the lowest cost to the highest, and all that were
    asked for: cost, top-1, how many leave where."""
    kinds = {row["kind"] for row in result["rows"]}
    best = [row for row in result["rows"] if row["kind"] == ("solved" if "solved" in kinds else
                                                            "given")]
    places = sorted(set(np.linspace(0, len(best) - 1, SHOWN).round().astype(int).tolist()))
    rows = [best[i] for i in places] + [row for row in result["rows"] if row["kind"] == "budget"]
    rows.sort(key=lambda row: row["scored_cost"])
    share = lambda row, k: f"{100 * row['scored_shares'][k]:.1f} %"
    return as_text(rows, [
        Column("GMACs", 9, lambda row: f"{row['scored_cost']:.4g}"),
        Column("top-1", 9, lambda row: f"{row['scored_top1']:.1f} %"),
        *(Column(f"exit {k}", 9, lambda row, k=k: share(row, k - 1))
          for k in range(1, len(result["flops"]) + 1)),
        Column("thresholds", 34, lambda row: ", ".join(
            f"{value:.4f}" if abs(value) <= 1 else "never" if value > 0 else "all"
            for value in row["thresholds"]))])


def official_lines(result: dict[str, Any]) -> list[str]:
    """The three lines that the authors' script ends with."""
    rows = [row for row in result["rows"] if row["kind"] in ("official", "given")]
    curve = [[row[key] for row in rows] for key in ("scored_cost", "scored_top1")]
    return [f"flops : {result['flops']}", f"anytime_classification : {result['anytime']}",
            f"budgeted_batch_classification : {curve}"]


def official_entries(held: dict[str, Any]) -> dict[str, Any]:
    """What the authors' inference file has beside the weights: thresholds float32 [59, E]."""
    rows = [row for row in held["rows"] if row["kind"] == "official"]
    return {"flops": held["flops"], "anytime_classification": held["anytime"],
            "dynamic_threshold": np.float32([row["thresholds"] for row in rows]),
            "budgeted_batch_classification": [[row["scored_cost"] for row in rows],
                                              [row["scored_top1"] for row in rows]]}


def _opened(config: ConfigDict, workdir: Path, weights: str,
            job: str) -> tuple[Run, int, dict]:
    """The run, the step and the weights, averaged where there are such."""
    if "splits" not in config.model:
        raise ValueError(f"--job={job}: model.name = {config.model.name} has one exit, a cascade "
                         "of DVT has several")
    machine.refuse_accidental_cpu()
    run = assemble(config)
    if run.data.val.frames:
        raise ValueError(f"--job={job}: a cascade takes images, data.source = {config.data.source} "
                         "holds clips")
    machine.compile_cache()
    step, fields = starts.weights(run, workdir, weights)
    return run, step, states.weights(fields)


def _warn(solved: calibration.Answers, run: Run) -> None:
    """Says where too few images make thresholds that nobody reaches."""
    if solved.hits.shape[1] < run.data.num_classes:
        calibration.log.warning(
            "thresholds are found on %d images of %d classes: some will be those that nobody "
            "reaches", solved.hits.shape[1], run.data.num_classes)
