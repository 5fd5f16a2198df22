"""The linear probe: what its gradients are and cost, what it leaves alone, on images and clips."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.papers.scala.tiny import filled
from vit_efficient.engine import optim
from vit_efficient.measure.macs import multiply_adds
from vit_efficient.papers.scala.probe import probe
from vit_efficient.papers.scala.widths import draw
from vit_efficient.seams.objective import Forward, supervised
from vit_efficient.seams.phases import Phase
from vit_efficient.zoo import create_model

KEY = jax.random.key(0)
SIZES = dict(num_classes=5, image_size=8, width=16, depth=1, num_heads=2, patch_size=4)
MODELS = {"plain": ("scala", dict(granularity=0.25)),
          "distilled": ("scala", dict(smallest_ratio=0.5, granularity=0.5, distilled=True)),
          "deit": ("deit", dict(distilled=True))}


def made(name: str, **options):
    """(model, weights far from the start, the probe's objective)."""
    variant, own = MODELS[name]
    model = create_model(variant, **SIZES | own | dict(drop_path=0.5) | options)
    forward = Forward(model, Phase(), {}, optim.frozen(("head*",)))
    return model, filled(model), probe(forward, Phase(), None, ratios=None)


def batch(*shape: int) -> dict:
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.normal(size=(*shape, 8, 8, 3)), jnp.float32),
            "label": jnp.asarray(rng.integers(0, 5, shape[0]))}


def log_p(model, params: dict, images: jax.Array, **ratio) -> jax.Array:
    """Of clips [B, F, ...] after a loop over the frames."""
    if images.ndim == 4:
        return jax.nn.log_softmax(model.apply({"params": params}, images, **ratio))
    frames = [model.apply({"params": params}, images[:, i], **ratio)
              for i in range(images.shape[1])]
    return jax.nn.log_softmax(sum(frames) / len(frames))


@pytest.mark.parametrize("name, shape", [("plain", (6,)), ("distilled", (4, 2)), ("deit", (4, 3))])
def test_gradients_are_those_of_the_whole_net_in_the_classifier_and_none_elsewhere(name, shape):
    model, params, objective = made(name)
    examples, widths = batch(*shape), model.ratios if name != "deit" else ()
    every = [dict(ratio=ratio) for ratio in widths] or [{}]

    def slow(params):
        return sum(-jnp.take_along_axis(log_p(model, params, examples["image"], **ratio),
                                        examples["label"][:, None], 1).mean() for ratio in every)

    expected, slow_grads = jax.jit(jax.value_and_grad(slow))(params)
    (loss, aux), grads = jax.jit(objective.gradients)(params, {"collections": {}, "step": 0},
                                                      examples, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(sum(value for key, (value, _) in aux.metrics.items()
                                   if key.startswith("loss")), expected, rtol=1e-5)
    for part, mine in grads.items():
        if part.startswith("head"):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine,
                         slow_grads[part])
            assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(mine))
        else:
            assert not any(leaf.any() for leaf in jax.tree.leaves(mine)), part
    assert any(leaf.any() for leaf in jax.tree.leaves(slow_grads["blocks_0"]))


def test_a_step_costs_forward_passes_and_the_gradient_of_the_classifier_alone():
    model, params, objective = made("plain", granularity=0.125)
    trace = jax.make_jaxpr(objective.gradients)(params, {"collections": {}, "step": 0}, batch(6),
                                                KEY)
    # The net, the pooling of its 5 tokens, the gradient of its classifier.
    one = lambda ratio: sum(model.macs(ratio=ratio).values()) + round(16 * ratio) * (5 + 5)
    nets = [places for places, _ in draw(KEY, 7).values()]
    assert [len(places) for places in nets] == [3, 2, 1]
    expected = one(1.0) + sum(np.mean([one(model.ratios[i]) for i in places]) for places in nets)
    assert multiply_adds(trace) == 6 * expected


def test_only_what_is_trained_costs_a_gradient_in_every_objective():
    model, params, _ = made("deit")
    count = lambda still: multiply_adds(jax.make_jaxpr(
        supervised(Forward(model, Phase(), {}, still), Phase(), None).gradients)(
            params, {"collections": {}, "step": 0}, batch(6), KEY))
    forward = 6 * (sum(model.macs().values()) + 2 * 6 * 16)       # two heads pool 6 tokens
    assert count(optim.frozen(("head*",))) == forward + 6 * 2 * 16 * 5
    assert forward + 6 * 2 * 16 * 5 < count(optim.frozen(("norm/*", "head*"))) < count(None) / 2


def test_nothing_is_dropped_and_the_drawn_widths_follow_the_key():
    model, params, objective = made("plain", granularity=0.125)
    run, fixed, seen = jax.jit(objective.gradients), {"collections": {}, "step": 0}, set()
    examples = batch(6)
    ce = jax.jit(lambda params: {ratio: -jnp.take_along_axis(
        log_p(model, params, examples["image"], ratio=ratio), examples["label"][:, None], 1).mean()
        for ratio in model.ratios})(params)
    for i in range(8):
        key = jax.random.fold_in(KEY, i)
        (_, aux), _ = run(params, fixed, examples, key)
        for name, (places, chosen) in draw(key, 7).items():
            place = places[int(chosen)]
            np.testing.assert_allclose(aux.metrics[f"loss_{name}"][0], ce[model.ratios[place]],
                                       rtol=1e-5)
            seen.add(place)
    assert seen == set(range(6))


@pytest.mark.parametrize("name", ["distilled", "deit"])
def test_predictions_of_a_clip_are_the_mean_over_its_frames(name):
    model, params, objective = made(name)
    clips = batch(3, 4)["image"]
    forward = Forward(model, Phase(), {})
    fixed = {"collections": {}, "step": 0}
    found = jax.jit(partial(objective.predictions, forward))(params, fixed, clips)
    widths = {f"width{ratio:g}": dict(ratio=ratio) for ratio in (0.5, 1.0) if name != "deit"}
    assert found.keys() == {"", *widths}
    for key, logits in found.items():
        apply = jax.jit(partial(model.apply, **widths.get(key, {})))
        expected = np.mean([apply({"params": params}, clips[:, i]) for i in range(4)], 0)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    both, _ = jax.eval_shape(forward, params, fixed, clips, KEY)              # in training
    assert jax.tree.map(jnp.shape, both) == (((3, 5),) * 2 if model.distilled else (3, 5))


def test_what_cannot_be_probed():
    model, _, objective = made("plain")
    assert objective.missing == ""
    assert "set optim.trained = ('head*',)" in probe(Forward(model, Phase(), {}), Phase(),
                                                     None).missing
    with pytest.raises(ValueError, match="model.granularity = None leaves open which widths"):
        made("plain", granularity=None)
