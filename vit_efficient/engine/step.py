"""One training step: pure, in the papers' order, its randomness a function of the step number.

Device transforms, objective, optimiser, masks, EMA, topology (in its phases only), keep or skip.
`Run.step` jits what `make_step` returns, once for each phase; the loop in `jobs/train.py` calls it.
No other file knows the order.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vit_efficient.engine import optim
from vit_efficient.engine.state import State
from vit_efficient.seams.objective import accumulated
from vit_efficient.seams.phases import Phase
from vit_efficient.seams.sparsity import Sparsity
from vit_efficient.settings.values import Count, Rate


def make_step(objective, optimizer: optim.Optimizer, sparsity: Sparsity, phase: Phase,
              on_device: Callable, *, ema_decay: Rate = 0.0, accumulate: Count = 1,
              stop_after_skips: Count = 10) -> Callable:
    """`step(state, frozen, batch) -> (state, metrics)`, to be jitted with `state` donated.

    `frozen` is what never changes (a teacher's weights). Metrics are `(sum, count)`, on the device.
    `ema_decay` 0 is no EMA; the loop ends the run after `stop_after_skips` skipped steps in a row.
    """
    gradients = accumulated(objective.gradients, accumulate)

    def step(state: State, frozen: dict, batch: dict) -> tuple[State, dict]:
        for_transforms, for_objective, for_topology = jax.random.split(state.key(), 3)
        batch = on_device(batch, for_transforms)
        fixed = {"collections": state.collections, "step": state.step, **frozen}
        (loss, aux), grads = gradients(state.params, fixed, batch, for_objective)
        norm = optax.tree.norm(grads)
        params, opt_state = optim.apply(optimizer, grads, state.opt_state, state.params, state.step)
        params, masks = sparsity.apply(params, state.masks), state.masks
        weights = {"params": params, "collections": aux.collections}
        ema = optax.incremental_update(weights, state.ema, 1 - ema_decay) if ema_decay else {}
        moved = {}
        if phase.topology:                              # its own program: other steps pay nothing
            params, masks, moved = sparsity.update(params, masks, grads, aux.signals,
                                                   state.step + 1, for_topology)
            params = sparsity.apply(params, masks)
        # A step with an infinite or undefined number leaves no trace but its count.
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        after = state.replace(params=params, collections=aux.collections, opt_state=opt_state,
                              ema=ema, masks=masks)
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        state = state.replace(step=state.step + 1, skipped=state.skipped + ~good,
                              streak=jnp.where(good, 0, state.streak + 1))
        metrics = {"loss": (loss, 1.0), "grad_norm": (norm, 1.0), **aux.metrics, **moved,
                   "learning_rate": (optimizer.learning_rate(state.step - 1), 1.0)}
        return state, {"metrics": metrics, "skipped": state.skipped, "streak": state.streak}
    return step
