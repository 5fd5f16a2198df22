"""Evaluation: every example exactly once, for any batch size, devices and hosts.

`jobs/train` scores a run's weights while it trains, `jobs/evaluate` those of a checkpoint; both by
a `Validation`, whose compiled programs stay from one call to the next.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_efficient.data.loader import evaluation_batches
from vit_efficient.engine import sharding, state as states
from vit_efficient.engine.run import Run
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.values import Count, Positive


class Validation:
    """Scores weights on a split; its compiled programs are kept from one call to the next.

    Args:
      every_epochs: epochs from one evaluation in training to the next; the last step has one too.
      batch_size: images at once, by default the training batch.
    """

    def __init__(self, run: Run, split: str, *, every_epochs: Positive = 1.0,
                 batch_size: Count | None = None):
        self.run, self.source = run, getattr(run.data, split)
        self.batch_size = batch_size or run.config.batch_size
        self.every_steps = max(round(every_epochs * run.length.steps_per_epoch), 1)
        self.scored = run.objective(Phase()).predictions is not None
        self._programs: dict[Phase, Callable] = {}

    def due(self, step: int) -> bool:
        """True after the steps that an evaluation follows: every so many, and the last; never where
        the objective scores nothing."""
        return self.scored and (step % self.every_steps == 0 or step == self.run.phases.total)

    def __call__(self, fields: dict, step: int, phase: Phase = Phase(),
                 alive: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Means over the split: `top1`, `top5`, `loss` of the raw weights and `..._ema` of the
        averaged ones, at the run's last setting and, where that of `phase` is another, also at its
        own: `..._stride16`. `alive` is called for every batch. ValueError where the objective
        scores nothing."""
        if not self.scored:
            raise ValueError(f"objective.name = {self.run.config.objective.name}: trains no "
                             "classifier, there is nothing to score")
        asked = self._asked(fields, phase)
        sums: dict[str, dict] = {}                      # end of a score's name -> sums and counts
        with evaluation_batches(self.source, self.run.augment.evaluate, self.run.image_size,
                                self.batch_size, sharding.batch_sharding(self.run.mesh),
                                **self.run.config.loader) as batches:
            for batch in batches:
                alive()
                for end, (weights, program) in asked.items():
                    out = program(weights, jnp.int32(step), batch)
                    sums[end] = jax.tree.map(jnp.add, sums[end], out) if end in sums else out
        return _means(jax.device_get(sums))

    def _asked(self, fields: dict, phase: Phase) -> dict[str, tuple[dict, Callable]]:
        """What an evaluation computes, by the end of its scores' names: `""`, `_ema`, `_stride16`,
        `_stride16_ema`."""
        asked = {}
        for kind, end in (("raw", ""), ("ema", "_ema"))[:2 if fields["ema"] else 1]:
            for suffix, setting in self.settings(phase).items():
                asked[suffix + end] = states.weights(fields, kind), self._program(setting)
        return asked

    def settings(self, phase: Phase) -> dict[str, Phase]:
        """Suffix -> setting: the model's of the run's last phase, and that of `phase`."""
        last = self.run.phases.phase_at(self.run.phases.total - 1).model
        if not phase.model or phase.model == last:
            return {"": Phase(model=last)}
        name, value = phase.model[0]
        return {"": Phase(model=last), f"_{name}{value}": Phase(model=phase.model)}

    def _program(self, phase: Phase) -> Callable:
        if phase not in self._programs:
            self._programs[phase] = self.run.scoring(phase)
        return self._programs[phase]


def _means(sums: dict[str, dict]) -> dict[str, float]:
    """`{end: {prediction: {metric: (sum, count)}}}` as `{metric + end + _prediction: mean}`."""
    return {metric + end + (f"_{prediction}" if prediction else ""): float(total / count)
            for end, predictions in sums.items()
            for prediction, metrics in predictions.items()
            for metric, (total, count) in metrics.items()}


def table(values: dict[str, float]) -> str:
    """Scores a line each: `top-1 98.6 %`, those of top-1 first."""
    def row(name: str, value: float) -> str:
        metric, _, rest = name.partition("_")
        label = " ".join((metric.replace("top", "top-"), *rest.split("_"))).strip()
        share = metric.startswith("top")
        return f"{label} {100 * value:.1f} %" if share else f"{label} {value:.4f}"
    ordered = sorted(values.items(), key=lambda item: not item[0].startswith("top1"))
    return "\n".join(row(*item) for item in ordered)
