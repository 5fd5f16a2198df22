"""Scala's training: which widths a step draws, who teaches whom, what a step leaves untouched."""
from collections import Counter
from functools import partial

from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.papers.scala.tiny import filled as weights
from vit_efficient.papers.scala import objective
from vit_efficient.papers.scala.objective import scala, separate
from vit_efficient.papers.scala.phases import FULL, full_net_first
from vit_efficient.papers.scala.widths import draw, drawn
from vit_efficient.seams.objective import Forward, supervised
from vit_efficient.seams.phases import Length, Phase
from vit_efficient.zoo import create_model

KEY = jax.random.key(0)
FIXED = {"collections": {}, "step": 0}        # what an objective gets beside the parameters


def toy(**options):
    """A tiny Scala of four widths, without a teacher."""
    return create_model("scala", **dict(num_classes=5, image_size=8, width=16, depth=1, num_heads=2,
                                        patch_size=4, granularity=0.25, drop_path=0.0) | options)


def made(model, phase: Phase = Phase(), teacher=None, **options):
    """The objective of `model`, "class" being taught where it has no second head."""
    usual = {"ratios": None} if model.distilled else {"ratios": None, "taught": "class"}
    return scala(Forward(model, phase, {}), phase, teacher, **usual | options)


def batch(count: int = 8, side: int = 8) -> dict:
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.normal(size=(count, side, side, 3)), jnp.float32),
            "label": jnp.asarray(rng.integers(0, 5, count))}


def run(objective, params: dict, examples: dict | None = None, key=KEY, teacher=None):
    fixed = FIXED | {"teacher": teacher}
    return jax.jit(objective.gradients)(params, fixed, examples or batch(), key)


@given(st.integers(2, 64))
def test_the_intermediate_widths_are_two_halves_of_what_lies_between(count):
    """By the authors' formula in whole multiples of the granularity, wherever their loop runs."""
    upper, lower = drawn(count)
    assert sorted([*upper, *lower]) == list(range(1, count - 1))
    assert not lower or max(lower) < min(upper)
    if count > 4:
        middle = (count - 1) // 2               # m // eps - s // eps
        assert upper == range(middle, count - 1) and lower == range(1, middle)
    assert (len(upper) > 0, len(lower) > 0) == (count > 2, count > 3)


def test_a_step_needs_the_memory_of_one_net():
    model, examples = toy(image_size=32, depth=2), batch(32, 32)
    full = model.subnet(1.0)
    params = jax.eval_shape(full.init, KEY, jnp.zeros((1, 32, 32, 3)))["params"]

    def needed(objective) -> int:
        program = jax.jit(objective.gradients).lower(params, FIXED, examples, KEY).compile()
        return program.memory_analysis().temp_size_in_bytes
    alone = needed(supervised(Forward(full, Phase(), {}), Phase(), None))
    assert needed(made(model)) < 1.5 * alone, "the nets' activations are kept side by side"


def test_accelerators_get_a_barrier_between_the_nets():
    model = toy()
    lowered = jax.jit(made(model).gradients).trace(
        weights(model), FIXED, batch(), KEY).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("optimization_barrier") == 3


def test_widths_are_uniform_and_follow_from_the_key():
    keys = jax.random.split(KEY, 3000)
    drawing = jax.jit(jax.vmap(lambda key: [chosen for _, chosen in draw(key, 13).values()]))
    upper, lower, smallest = map(np.asarray, drawing(keys))
    for places, count in ((upper, 6), (lower, 5)):
        share = np.bincount(places, minlength=count) / len(keys)
        np.testing.assert_allclose(share, 1 / count, atol=5 * (1 / count / len(keys)) ** 0.5)
    assert set(smallest) == {0}
    pairs = Counter(zip(upper.tolist(), lower.tolist()))        # independent of each other
    assert len(pairs) == 30 and max(pairs.values()) < 2 * 3000 / 30
    np.testing.assert_array_equal(upper, np.asarray(drawing(keys)[0]))


@pytest.mark.parametrize("options, nets", [
    (dict(), {"3q": 0.75, "2q": 0.5, "1q": 0.25}),                              # X = 4
    (dict(smallest_ratio=0.5), {"3q": 0.75, "1q": 0.5}),                        # X = 3
    (dict(smallest_ratio=0.5, granularity=0.5), {"1q": 0.5})])                  # X = 2
def test_a_step_is_the_sum_of_its_nets(options, nets):
    """Loss and gradient, against one net after the other, each taught by the one before."""
    model, examples = toy(**options), batch()
    params, target = weights(model), jax.nn.one_hot(examples["label"], 5)
    log_p = lambda params, ratio: jax.nn.log_softmax(
        model.apply({"params": params}, examples["image"], ratio=ratio))

    def slow(params):
        own = log_p(params, 1.0)
        each = {"full": -((0.9 * target + 0.02) * own).sum(-1).mean()}
        for name, ratio in nets.items():
            given, own = jax.lax.stop_gradient(own), log_p(params, ratio)
            ce = -(target * own).sum(-1).mean()
            each[name] = (jnp.exp(given) * (given - own)).sum(-1).mean() + ce
            each[f"{name}_ce"] = ce
        return sum(each[name] for name in ("full", *nets)), each

    (expected, each), slow_grads = jax.jit(jax.value_and_grad(slow, has_aux=True))(params)
    (loss, aux), grads = run(made(model, label_smoothing=0.1), params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert {f"loss_{name}" for name in each} | {"top1"} == set(aux.metrics)
    for name, value in each.items():
        np.testing.assert_allclose(aux.metrics[f"loss_{name}"][0], value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, slow_grads)


def test_a_drawn_step_trains_the_widths_that_its_key_draws():
    model = toy(granularity=0.125)                      # seven widths: 3 upper ones, 2 lower ones
    params, objective = weights(model), made(model)
    step, seen = jax.jit(objective.gradients), {}
    forward = jax.jit(lambda ratio: model.apply({"params": params}, batch()["image"], ratio=ratio),
                      static_argnums=0)
    for i in range(12):
        key = jax.random.fold_in(KEY, i)
        (_, aux), _ = step(params, FIXED, batch(), key)
        widths = draw(jax.random.split(key, 5)[0], 7)
        places = tuple(int(places[chosen]) for places, chosen in widths.values())
        losses = [float(aux.metrics[f"loss_{name}_ce"][0]) for name in ("3q", "2q")]
        for place, value in zip(places, losses):
            own = jax.nn.log_softmax(forward(model.ratios[place]))
            expected = -jnp.take_along_axis(own, batch()["label"][:, None], 1).mean()
            np.testing.assert_allclose(value, expected, rtol=1e-4)
        seen[places] = losses
    assert len(seen) > 2


@pytest.mark.parametrize("granularity, count", [(1 / 8, 7), (1 / 16, 13)])
def test_a_step_holds_each_width_once(granularity, count):
    """Not each pair of widths: so many forward passes are traced, and with them compiled."""
    model = create_model("scala", num_classes=5, image_size=8, width=32, depth=1, num_heads=1,
                         patch_size=4, granularity=granularity)
    params = jax.eval_shape(model.init, KEY, jnp.zeros((1, 8, 8, 3)))["params"]
    traced = jax.make_jaxpr(made(model).gradients)(params, FIXED, batch(), KEY)
    widths = Counter(patch_embeddings(traced.jaxpr))
    assert widths == {round(32 * ratio): 1 for ratio in model.ratios} and len(widths) == count


def patch_embeddings(jaxpr) -> list[int]:
    """Channels of each convolution of images to their 2 x 2 patches, in every branch."""
    found = []
    for eqn in jaxpr.eqns:
        shape = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "conv_general_dilated" and shape[:3] == (8, 2, 2):
            found.append(shape[3])
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple) else (value,):
                part = getattr(part, "jaxpr", part)
                found += patch_embeddings(part) if hasattr(part, "eqns") else []
    return found


@pytest.mark.parametrize("granularity, giga", [
    (1 / 16, 4.634 + 2.949 + 1.025 + 0.370), (1 / 32, 1.96 * 4.634), (1 / 8, 1.89 * 4.634),
    (1 / 4, 1.93 * 4.634)])
def test_a_step_costs_what_its_nets_cost_on_average(granularity, giga):
    """Against the GFLOPs of the authors' four nets, on average over what a step draws."""
    model = create_model("deit_small_distilled_patch16_224_scala", granularity=granularity)
    passes = made(model).passes
    assert sum(often for _, often in passes) == pytest.approx(4)
    cost = sum(often * model.flops(**knobs) for knobs, often in passes) / 1e9
    assert cost == pytest.approx(giga, rel=3e-3)
    assert made(model, Phase(objective=FULL)).passes == (({"ratio": 1.0}, 1.0),)


def test_isolated_activation_keeps_the_smallest_net_apart():
    """Up to width 0.75 an intermediate net shares no block weight with the smallest one."""
    model = toy()
    params = weights(model)
    images = batch()["image"]
    net = lambda params: model.apply({"params": params}, images, ratio=0.5).sum()
    kernel = jax.jit(jax.grad(net))(params)["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert not np.any(kernel[:4, :16]) and np.any(kernel[8:, 32:])


def test_the_warm_up_trains_the_full_net_alone():
    model = toy()
    params = weights(model)
    (loss, aux), grads = run(made(model, Phase(objective=FULL), label_smoothing=0.2), params)
    plain = supervised(Forward(model, Phase(), {}), Phase(), None, label_smoothing=0.2)
    (expected, _), slow = run(plain, params)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, slow)
    assert set(aux.metrics) == {"top1", "loss_full"}


def test_the_warm_up_ends_with_its_epochs():
    phases = full_net_first(Length(100, 10, 5.0), None, full_epochs=2.5)
    kinds = [phases.phase_at(step).objective for step in range(50)]
    assert kinds == [FULL] * 25 + ["train"] * 25 and len(phases.distinct()) == 2
    assert phases.phase_at(0).label == "full net"
    assert len(full_net_first(Length(100, 10, 5.0), None, full_epochs=0.0).distinct()) == 1
    with pytest.raises(ValueError, match="phases.full_epochs = 5: must be below epochs = 5"):
        full_net_first(Length(100, 10, 5.0), None, full_epochs=5.0)


def test_groups_have_widths_of_their_own():
    """Two groups are two half batches under their own keys, averaged."""
    model, examples = toy(granularity=0.125, smallest_ratio=0.5), batch()
    params = weights(model)
    (loss, _), grads = run(made(model, groups=2), params, examples)
    step = jax.jit(made(model).gradients)
    halves = [step(params, FIXED, jax.tree.map(lambda x: x[i::2], examples),
                   jax.random.fold_in(KEY, i)) for i in range(2)]
    np.testing.assert_allclose(loss, np.mean([half[0][0] for half in halves]), rtol=1e-6)
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, sum(b) / 2, atol=1e-6), grads,
                 *(half[1] for half in halves))


@pytest.mark.parametrize("options, teacher, changes, message", [
    (dict(granularity=None), None, {}, "model.granularity = None"),
    (dict(), lambda: None, {}, "a teacher needs a distilled model"),
    (dict(), None, dict(taught="distillation"), "objective.taught = distillation: this model has"),
    (dict(), None, dict(bce=True), "objective.label_smoothing = 0.1: must be 0 with")])
def test_what_does_not_go_together_is_refused(options, teacher, changes, message):
    with pytest.raises(ValueError, match=message):
        made(toy(**options), teacher=teacher, **changes)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="needs a model of many widths"):
        made(create_model("deit", width=16, depth=1, num_heads=2, image_size=8, patch_size=4))


def test_a_distilled_model_lacks_a_teacher_only_for_training():
    model = toy(distilled=True)
    alone = made(model)
    assert "objective.name = scala: needs a teacher, set teacher.workdir" in alone.missing
    assert not made(model, teacher=lambda: None).missing and not made(toy()).missing
    assert scored(alone.predictions, model) == ["", "width0.25", "width0.5", "width0.75", "width1"]


def scored(predictions, model) -> list[str]:
    """Names of the predictions, in their order; nothing is computed."""
    names, forward = [], Forward(model, Phase(), {})
    jax.eval_shape(lambda params: names.extend(
        predictions(forward, params, {"collections": {}}, batch()["image"])), weights(model))
    return names


LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)


def forward(params, fixed, images, key, ratio=1.0):
    """A net whose logits grow with its width."""
    return params["scale"] * ratio * LOGITS, fixed["collections"]


forward.model = toy()


def test_every_width_is_scored_and_the_last_one_counts():
    alone = separate(forward, Phase(), None, ratios=(0.5, 1.0))
    found = alone.predictions(forward, {"scale": 1.0}, {"collections": {}}, None)
    assert list(found) == ["", "width0.5", "width1"] and alone.needs == ("ratio",)
    for name, ratio in (("", 1), ("width0.5", 0.5), ("width1", 1)):
        np.testing.assert_array_equal(found[name], ratio * LOGITS)


def test_a_width_to_be_scored_must_be_one_of_the_models():
    model = Forward(toy(smallest_ratio=0.5), Phase(), {})
    for make in (separate, partial(scala, taught="class")):
        with pytest.raises(ValueError, match="objective.ratios: ratio = 0.25: the widths are 0.5,"):
            make(model, Phase(), None)


def test_without_a_list_all_widths_are_scored():
    model = toy(granularity=0.125)
    assert scored(objective.every_width, model)[1:] == [f"width{ratio:g}" for ratio in model.ratios]


def test_the_widest_net_alone_learns():
    examples = {"image": jnp.zeros((2, 1, 1, 3)), "label": jnp.array([1, 3])}
    arguments = {"scale": 1.0}, {"collections": {}}, examples, KEY
    (loss, _), grads = separate(forward, Phase(), None, label_smoothing=0.2).gradients(*arguments)
    plain = supervised(forward, Phase(), None, label_smoothing=0.2).gradients(*arguments)
    assert loss == plain[0][0] and grads == plain[1]
