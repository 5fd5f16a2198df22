"""DVT's training as the authors' code does it: losses, gradients exit by exit, AdamW, EMA."""
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.golden.reader import Fixture
from vit_efficient.data.device import mixing
from vit_efficient.engine import optim
from vit_efficient.papers.dvt.objective import exits
from vit_efficient.seams.objective import Forward, soft_targets
from vit_efficient.seams.phases import Length, Phase
from vit_efficient.weights import interop

FIRST = 1e-5            # relative, of the first step's losses and gradients' norms
LATER_STEPS = 2e-3      # of what follows an update, whose size hardly depends on the gradient's
NOISE = 1e-6            # of the largest norm: a gradient that small is none


def train_step(fixture: Fixture, model, variables: dict, images: np.ndarray) -> None:
    """One step or several on the same batch; what the file's caveat names is left out."""
    config = fixture.config
    smoothing, label = labels(fixture, config["targets"], model.num_classes)
    made = exits(Forward(model, Phase(), {}), Phase(), None, label_smoothing=smoothing)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(label)}
    collections = {kind: tree for kind, tree in variables.items() if kind != "params"}
    fixed, params = {"collections": collections, "step": 0}, variables["params"]
    target = soft_targets(batch["label"], model.num_classes, smoothing)
    if "targets" in fixture:
        fixture.expect("targets", target, atol=1e-6)
    official = partial(named, model, config["param_order"].plain(), collections)
    groups(config, model, official)

    gradients = jax.jit(made.gradients)
    how = config["optimizer"]
    assert how["name"] == "adamw" and "exaggerated" in how["note"]
    (b1, b2), ema_decay = how["betas"].plain(), config["ema_decay"]
    transform = optim.make_optimizer(
        Length(1, 1, 1), model.no_decay, lr=how["lr"], weight_decay=how["weight_decay"], b1=b1,
        b2=b2, eps=how["eps"]).transform
    update = jax.jit(partial(optim.apply, optim.Optimizer(transform, lambda step: how["lr"])))
    state, ema, losses, first = transform.init(params), params, [], None
    for step in range(config["steps"]):
        (loss, aux), grads = gradients(params, fixed, batch, jax.random.key(0))
        count = sum(name.startswith("loss_exit") for name in aux.metrics)
        losses.append([*(aux.metrics[f"loss_exit{k}"][0] for k in range(1, count + 1)), loss])
        moved, state = update(grads, state, params, step)
        if first is None:
            first = grads, jax.tree.map(lambda new, old: new - old, moved, params)
        params = moved
        ema = jax.tree.map(lambda old, new: ema_decay * old + (1 - ema_decay) * new, ema, params)
    stored = fixture.values("losses")
    np.testing.assert_allclose(np.float32(losses[0]), stored[0], rtol=FIRST)
    fixture.expect("losses", np.float32(losses), rtol=LATER_STEPS)
    first_gradients(fixture, official, first[0])
    alone(fixture, official, model, variables, batch, target)
    skipped = noisy(config["caveat"], config["param_order"].plain())
    for name, tree in (("delta_norm_after_step1", first[1]), ("param_norm_after", params),
                       ("ema_norm_after", ema)):
        norms, expected = official(tree), fixture.values(name)
        for i in skipped:
            norms[i] = expected[i]
        fixture.expect(name, norms, rtol=LATER_STEPS, atol=1e-6)


def labels(fixture: Fixture, what: str, classes: int) -> tuple[float, np.ndarray]:
    """(smoothing, labels), mixed as the text says, hard where it does not."""
    label = fixture.values("labels")
    smoothing = float(re.search(r"smoothing[= ]([\d.]*\d)", what)[1]) if "smooth" in what else 0.0
    if not (found := re.search(r"lam[= ]([\d.]*\d)", what)):
        return smoothing, label.astype(np.int32)
    assert "B-1-i" in what
    batch = {"image": jnp.zeros((len(label), 1, 1, 3)), "label": jax.nn.one_hot(label, classes)}
    lam = float(found[1])
    return smoothing, mixing.blend(batch, jnp.full((1, 1), lam), lam)["label"]


def named(model, names: list[str], collections: dict, params: dict) -> np.ndarray:
    """The L2 norm of every official entry, in the file's order; -1 of what nothing trains."""
    state = interop.to_torch(model, {"params": params, **collections})
    assert list(state) == names
    frozen = {name for name, place in interop.layout(model).items() if place.path[0] != "params"}
    return np.array([-1.0 if name in frozen else np.linalg.norm(np.float64(state[name]))
                     for name in names], np.float32)


def groups(config: Mapping, model, official: Callable) -> None:
    """Decay group of every entry."""
    decay = optim.decays(model.no_decay)
    like = interop.layout(model)
    shapes = interop.shapes(model)["params"]
    flags = jax.tree_util.tree_leaves_with_path(decay(shapes))
    decayed = {tuple(key.key for key in path): flag for path, flag in flags}
    found = ["frozen" if place.path[0] != "params" else
             "decay" if decayed[place.path[1:]] else "no_decay" for place in like.values()]
    assert config["group"].plain() == found


def first_gradients(fixture: Fixture, official: Callable, grads: dict) -> None:
    """Norms of all and the whole of some, at the initial weights."""
    norms = official(grads)
    fixture.expect("grad_norm", norms, rtol=FIRST, atol=NOISE * norms.max())
    model, collections = official.args[0], official.args[2]
    state = interop.to_torch(model, {"params": grads, **collections})
    for name in fixture.matching("grad/*"):
        grad = state[name.partition("/")[2]]
        fixture.expect(name, grad, atol=max(FIRST * np.abs(grad).max(), NOISE * 0.1))


def alone(fixture: Fixture, official: Callable, model, variables: dict, batch: dict,
          target: jax.Array) -> None:
    """Gradients of each exit's loss by itself: which stages it reaches."""
    collections = {kind: tree for kind, tree in variables.items() if kind != "params"}

    @jax.jit
    def each(params: dict) -> list[dict]:
        def losses(params):
            outputs = model.apply({"params": params, **collections}, batch["image"], train=True)
            return tuple(optax.softmax_cross_entropy(out, target).mean() for out in outputs)
        values, pull = jax.vjp(losses, params)
        return [pull(tuple(float(i == k) for i in range(len(values))))[0]
                for k in range(len(values))]
    for k, grads in enumerate(each(variables["params"]), 1):
        norms = official(grads)
        fixture.expect(f"grad_norm_exit{k}_only", norms, rtol=FIRST, atol=NOISE * norms.max())


def noisy(caveat: str, names: list[str]) -> list[int]:
    """Places of the entries whose gradient is rounding noise, by the patterns that the caveat names
    before it tells what to skip."""
    patterns = re.findall(r"(?:\w+\.)+[\w.*]+\w", caveat.partition(": skip")[0].partition(
        "What is stored")[0])
    return [i for i, name in enumerate(names) if any(fnmatch(name, p) for p in patterns)]
