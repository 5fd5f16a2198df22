"""The cascade against its own stages run for everybody, and against the whole model."""
from functools import partial

import jax
import numpy as np
import pytest

from vit_efficient.papers.dvt.cascade import Cascade, confidence
from vit_efficient.zoo import create_model

OPTIONS = dict(num_classes=5, image_size=32, width=32, depth=1, num_heads=2, scan=True,
               splits=((16, 16, 0), (8, 8, 0), (4, 4, 0)))
NEVER, ALWAYS = 1e8, -1e8
# Up to JAX 0.7 the last bits of a product depend on an image's place in the batch, on a CPU.
PLACES = jax.__version_info__ < (0, 10)
same = partial(np.testing.assert_allclose, rtol=0, atol=2e-6) if PLACES else (
    np.testing.assert_array_equal)


@pytest.fixture(scope="module")
def model():
    return create_model("dvt_deit", **OPTIONS)


@pytest.fixture(scope="module")
def variables(model):
    """Weights whose logits differ enough for any share to leave."""
    made = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + np.float32(0.2 * rng.normal(size=x.shape)), made)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 32, 32, 3)).astype(np.float32)


def everybody(cascade: Cascade, shown: np.ndarray) -> np.ndarray:
    """Logits [E, n, K] of every stage for everybody, in batches of the cascade's size."""
    size, found = cascade.batch_size, []
    for first in range(0, len(shown), size):
        part = shown[first:first + size]
        padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
        waiting, logits = {"image": jax.device_put(padded, jax.local_devices()[0])}, []
        for stage in cascade.stages:
            out, _, waiting = stage(cascade.lanes[0].variables, waiting, np.float32(0))
            logits.append(np.asarray(out)[:len(part)])
        found.append(np.stack(logits))
    return np.concatenate(found, 1)


def agrees(cascade: Cascade, shown: np.ndarray) -> np.ndarray:
    """Every image answered once, at the exit and with the bits of its own stage; the exits."""
    found = list(cascade(enumerate(shown)))
    assert sorted(answer.id for answer in found) == list(range(len(shown)))
    logits = everybody(cascade, shown)
    sure = np.stack([np.asarray(jax.jit(confidence)(each)) for each in logits])
    expected = (sure >= cascade.thresholds[:, None]).argmax(0)
    for answer in found:
        assert answer.exit == expected[answer.id]
        same(answer.logits, logits[answer.exit, answer.id])
    return expected


def between(model, variables, share: float) -> tuple[float, float, float]:
    """Thresholds between two confidences, at which about `share` of the images leave."""
    logits = jax.jit(model.apply)(variables, images(200))
    sure = [np.sort(np.asarray(confidence(each))) for each in logits[:2]]
    cut = lambda values: float(values[int(200 * (1 - share))] + values[int(200 * (1 - share)) - 1])
    return cut(sure[0]) / 2, cut(sure[1]) / 2, ALWAYS


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("count", [1, 23, 131])
def test_exits_and_logits_are_those_of_the_stages(model, variables, batch_size, count):
    cascade = Cascade(model, variables, between(model, variables, 0.5), batch_size,
                      devices=jax.local_devices()[:1])
    taken = agrees(cascade, images(count))
    if count > 100:
        assert set(taken) == {0, 1, 2}


@pytest.mark.parametrize("thresholds", [
    (ALWAYS, NEVER, ALWAYS), (NEVER, NEVER, ALWAYS), (NEVER, ALWAYS, 0.0)])
def test_nobody_or_everybody_leaves(model, variables, thresholds):
    cascade = Cascade(model, variables, thresholds, 8, devices=jax.local_devices()[:1])
    taken = agrees(cascade, images(29))
    assert set(taken) == {next(k for k in range(3) if thresholds[k] <= 0)}


def test_ties_leave_together(model, variables):
    """Thresholds that are the very confidence of some images, several of them equal."""
    shown = images(30)
    shown[10:14] = shown[3]
    cascade = Cascade(model, variables, (NEVER, NEVER, ALWAYS), 6, devices=jax.local_devices()[:1])
    sure = np.stack([np.asarray(jax.jit(confidence)(each)) for each in everybody(cascade, shown)])
    cascade.thresholds = (sure[0, 3], sure[1, 7], ALWAYS)
    taken = agrees(cascade, shown)
    assert (taken[[3, 10, 11, 12, 13]] == 0).all()


def test_eight_devices_answer_as_one(model, variables):
    thresholds = between(model, variables, 0.4)
    cascade = Cascade(model, variables, thresholds, 4)
    assert len(cascade.lanes) == 8
    agrees(cascade, images(150))
    alone = Cascade(model, variables, thresholds, 4, devices=jax.local_devices()[:1])
    shown = dict((answer.id, answer) for answer in cascade(enumerate(images(61))))
    for answer in alone(enumerate(images(61))):
        assert answer.exit == shown[answer.id].exit
        same(answer.logits, shown[answer.id].logits)


def test_the_whole_model_says_the_same(model, variables):
    shown = images(40)
    whole = np.stack(jax.jit(model.apply)(variables, shown))
    for exit in range(3):
        thresholds = [NEVER] * exit + [ALWAYS] * (3 - exit)
        for answer in Cascade(model, variables, thresholds, 16)(enumerate(shown)):
            np.testing.assert_allclose(answer.logits, whole[exit, answer.id], atol=2e-5)


def test_one_image_runs_no_stage_more_than_it_needs(model, variables):
    cascade = Cascade(model, variables, between(model, variables, 0.5), 1,
                      devices=jax.local_devices()[:1])
    shown = images(12)
    for k, answer in enumerate(sorted(cascade(enumerate(shown)))):
        exit, logits = cascade.answer(shown[k])
        assert exit == answer.exit
        same(logits, answer.logits)
    calls = []
    stages = cascade.stages
    cascade.stages = [lambda *given, k=k: calls.append(k) or stages[k](*given) for k in range(3)]
    cascade.thresholds = (ALWAYS, NEVER, ALWAYS)
    cascade.answer(shown[0])
    assert calls == [0]


def test_thresholds_change_without_compiling(model, variables):
    cascade = Cascade(model, variables, (ALWAYS, NEVER, ALWAYS), 4, devices=jax.local_devices()[:1])
    list(cascade(enumerate(images(9))))
    cascade.thresholds = (NEVER, NEVER, ALWAYS)
    list(cascade(enumerate(images(9))))
    sizes = [stage._cache_size() for stage in cascade.stages]
    cascade.thresholds = between(model, variables, 0.5)
    agrees(cascade, images(20))
    assert [stage._cache_size() for stage in cascade.stages] == sizes == [1, 1, 1]


@pytest.mark.parametrize("features, relations", [(True, False), (False, True), (False, False)])
def test_what_is_not_reused_is_not_held(features, relations, variables, model):
    made = create_model("dvt_deit", **OPTIONS, feature_reuse=features, relation_reuse=relations)
    own = jax.jit(made.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    cascade = Cascade(made, own, (NEVER, NEVER, ALWAYS), 4, devices=jax.local_devices()[:1])
    agrees(cascade, images(11))
    image, tokens, maps = 32 * 32 * 3, (5, 17), ((1 * 2 * 5 * 5), (1 * 2 * 17 * 17))
    numbers = sum(image + features * count * 32 + relations * size
                  for count, size in zip(tokens, maps))
    assert cascade.held_bytes == 2 * 4 * 4 * numbers


@pytest.mark.parametrize("thresholds", [(0.5, 0.0), (0.5, float("nan"), 0.0), (0.5, 0.5, 0.5)])
def test_thresholds_that_cannot_be_are_refused(model, variables, thresholds):
    with pytest.raises(ValueError, match="thresholds = .*: must be 3 numbers, one for each exit"):
        Cascade(model, variables, thresholds, 4)
