"""What every exit says of a set of images, stored once; thresholds found and scored on it.

`--job=calibrate` calls `answers` for two sets, then `calibrated`; the paper's evaluation and export
read what it stored (`load`). A folder holds

    train.npz, val.npz    the answers to a set's images: see `Answers`; "about" says whose
    budgets.json          thresholds, their cost and accuracy on both sets
    budgets.csv, .png     the same as a table and a picture

A set whose file tells of the same weights and images is not computed again, so a second run, or one
after a kill, computes only what is missing, and new budgets run no model.
"""
from collections.abc import Sequence
from functools import partial
import json
import logging
from pathlib import Path
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient import disk
from vit_efficient.data import order
from vit_efficient.data.augment import make_augment
from vit_efficient.data.sources import Chosen
from vit_efficient.engine.manifest import checksum, manifest
from vit_efficient.engine.progress import clock
from vit_efficient.engine.rows import rows
from vit_efficient.engine.run import Run
from vit_efficient.measure.tables import draw, write_csv
from vit_efficient.papers.dvt import budget
from vit_efficient.seams.objective import Forward
from vit_efficient.seams.phases import Phase

FOLDER, RESULT = "calibration", "budgets.json"
LOG_SECONDS = 10.0
PERMUTATION = 0xCA11    # sets the order of the calibration's images apart from every epoch's

Criterion = Literal["confidence", "entropy", "margin", "random"]
Crops = Literal["random", "center"]
log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """Of E exits to n images, whose `places` in their split are int64 [n]: `hits` bool [E, n], and
    float32 [E, n] of the softmax the largest value, `confidence`, minus the `entropy` in nats, and
    the `margin` of the two largest; larger is surer."""
    places: np.ndarray
    hits: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray

    def sureness(self, criterion: Criterion, seed: int) -> np.ndarray:
        """float32 [E, n] by one of the paper's criteria (its Table 9); "random" draws it."""
        if criterion == "random":
            return np.random.default_rng(seed).random(self.hits.shape, np.float32)
        return getattr(self, criterion)


def ask(run: Run, weights: dict, batch: dict) -> dict[str, jax.Array]:
    """The fields of `Answers` but `places`, images first: [B, E] each; `weights` as of
    `state.weights`."""
    phase = Phase()
    images = run.augment.normalize(batch)["image"]
    fixed = {"collections": weights["collections"], "step": jnp.int32(0)}
    logits, _ = Forward(run.model, phase, {})(weights["params"], fixed, images, None)
    log_p = jax.nn.log_softmax(jnp.stack(logits, 1).astype(jnp.float32))
    p = jnp.exp(log_p)
    (first, second), label = jax.lax.top_k(p, 2)[0].transpose(2, 0, 1), batch["label"][:, None]
    return {"hits": p.argmax(-1) == label, "confidence": first,
            "entropy": jnp.where(p > 0, p * log_p, 0).sum(-1), "margin": first - second}


def answers(run: Run, weights: dict, split: Literal["train", "val"], folder: Path, *,
            images: int | None = None, crops: Crops = "center") -> Answers:
    """The answers to a split, from the file `folder`/SPLIT.npz where that holds them.

    Args:
      weights: as of `state.weights`.
      images: so many, drawn by the run's seed; None for all.
      crops: "center", the evaluation's; "random", the authors' for training images (random resized
        crops, bilinear, mirrored or not), drawn by the run's seed too.
    Raises:
      ValueError: a confidence is not finite, with the image.
    """
    source, seed = getattr(run.data, split), run.config.seed
    chosen = np.arange(len(source))
    if images is not None and images < len(source):
        chosen = np.sort(order.shuffled(np.arange(images), len(source), seed, PERMUTATION))
    about = {"weights": fingerprint(weights), "split": split, "set": str(source),
             "of": len(source), "images": len(chosen), "crops": crops, "seed": seed,
             "image_size": run.image_size, "exits": len(run.model.splits)}
    path = folder / f"{split}.npz"
    if (found := _stored(path, about)) is not None:
        log.info("%s: the answers to %d images are there", path, len(chosen))
        return found
    transform = make_augment(interpolation="bilinear").train if crops == "random" else None
    log.info("asking every exit about %d images of %s", len(chosen), source)
    program, parts, shown = partial(jax.jit(partial(ask, run)), weights), [], time.monotonic()
    begin = shown
    for batch in rows(run, Chosen(source, chosen), program, transform=transform, seed=seed):
        parts.append((batch.places, batch.said))
        if not np.isfinite(batch.said["confidence"]).all():
            bad = batch.places[~np.isfinite(batch.said["confidence"]).all(-1)][0]
            raise ValueError(f"{source}, example {chosen[bad]}: its confidence is not finite, the "
                             "weights are of a run that failed")
        if (now := time.monotonic()) - shown > LOG_SECONDS:
            left = (now - begin) * (len(chosen) - batch.end) / batch.end
            log.info("%d of %d images, left %s", batch.end, len(chosen), clock(left))
            shown = now
    places = chosen[np.concatenate([place for place, _ in parts])]
    made = Answers(places, **{name: np.concatenate([said[name] for _, said in parts]).T
                              for name in Answers._fields[1:]})
    if jax.process_index() == 0:
        _store(path, made, about)
    return made


def fingerprint(weights: dict) -> str:
    """16 hexadecimal digits of `{"params", "collections"}`, wherever they came from."""
    return checksum(manifest({name: weights[name] for name in ("params", "collections")}))


def calibrated(solved: Answers, scored: Answers, flops: Sequence[float], *,
               criterion: Criterion = "confidence", seed: int = 0,
               budgets: Sequence[float] = ()) -> dict[str, Any]:
    """Thresholds found on `solved` and what they make of both sets: the 59 official ones, the best
    at each official cost, and the best within each of `budgets`. JSON values; costs in the unit of
    `flops`, accuracies in percent."""
    sure, other = (each.sureness(criterion, seed) for each in (solved, scored))
    official = budget.official_rows(sure)
    costs = [budget.outcome(sure, solved.hits, row, flops).cost for row in official]
    best = budget.solve(sure, solved.hits, flops, [*costs, *budgets], official)
    asked = [*(("official", cost, row) for cost, row in zip(costs, official)),
             *(("solved", cost, row) for cost, row in zip(costs, best)),
             *(("budget", cost, row) for cost, row in zip(budgets, best[len(costs):]))]
    found = []
    for kind, bound, row in asked:
        outcomes = {name: budget.outcome(each, hits.hits, row, flops)
                    for name, each, hits in (("solved", sure, solved), ("scored", other, scored))}
        found.append({"kind": kind, "budget": float(bound), "thresholds": row.tolist()} | {
            f"{name}_{key}": value for name, each in outcomes.items() for key, value in (
                ("cost", each.cost), ("top1", 100 * each.accuracy),
                ("shares", each.shares.tolist()))})
        found[-1]["gap"] = found[-1]["scored_top1"] - found[-1]["solved_top1"]
    return {"flops": [float(cost) for cost in flops], "criterion": criterion,
            "anytime": (100 * scored.hits.mean(1)).tolist(), "rows": found,
            "solved_images": solved.hits.shape[1], "scored_images": scored.hits.shape[1]}


def store(result: dict[str, Any], folder: Path, name: str) -> None:
    """Writes what `calibrated` gave as JSON, CSV and a picture."""
    disk.write_json(folder / RESULT, result)
    flat = [{key: value for key, value in row.items() if not isinstance(value, list)}
            | {f"threshold{k}": value for k, value in enumerate(row["thresholds"], 1)}
            for row in result["rows"]]
    write_csv(flat, folder / "budgets.csv")
    points = [{"cost": cost, "top1": top1 / 100, "name": f"exit {k}", "curve": False}
              for k, (cost, top1) in enumerate(zip(result["flops"], result["anytime"]), 1)]
    points += [{"cost": row["scored_cost"], "top1": row["scored_top1"] / 100, "name": "",
                "curve": True} for row in result["rows"] if row["kind"] == "solved"]
    draw(points, folder / "budgets.png", title=f"{name}: one set of weights, every budget",
         name=lambda row: row["name"], joined=lambda row: row["curve"],
         costs={"mean multiply-adds of an image, G": lambda row: row["cost"]})


def load(folder: Path) -> dict[str, Any] | None:
    """What `store` wrote, None where nothing is."""
    path = folder / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def halves(found: Answers, seed: int) -> tuple[Answers, Answers]:
    """A random half of the images, and the other one."""
    chosen = np.random.default_rng(seed).permutation(len(found.places))
    middle = len(chosen) // 2
    return tuple(Answers(found.places[part], *(array[:, part] for array in found[1:]))
                 for part in (np.sort(chosen[:middle]), np.sort(chosen[middle:])))


def _store(path: Path, made: Answers, about: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(path) as neighbour, open(neighbour, "wb") as file:
        np.savez(file, about=json.dumps(about), **made._asdict())


def _stored(path: Path, about: dict) -> Answers | None:
    """The answers in the file, None where there is none or it tells of others."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        if json.loads(str(file["about"])) != about:
            return None
        return Answers(**{name: file[name] for name in Answers._fields})
