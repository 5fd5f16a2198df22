"""Scala taught without labels: its losses by slow loops, who learns what, and a whole run."""
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs import final_state
import vit_efficient
from vit_efficient.data.batches import Share, TrainBatches
from vit_efficient.data.sources import open_data
from vit_efficient.data.stored import describe, sampled
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.checkpoint import Checkpoints
from vit_efficient.engine.pretrained import given_weights
from vit_efficient.engine.start import weights as start_weights
from vit_efficient.jobs.export import export
from vit_efficient.jobs.features import features
from vit_efficient.jobs.train import train
from vit_efficient.papers.scala.foundation import divergence, feature_loss, foundation, projected
from vit_efficient.papers.scala.jobs import evaluate
from vit_efficient.papers.scala.phases import FULL
from vit_efficient.seams.objective import Forward
from vit_efficient.seams.phases import Phase
from vit_efficient.settings.store import load_stored, store
from vit_efficient.weights import files, interop
from vit_efficient.zoo import create_model

KEY = jax.random.key(0)
TOY = dict(num_classes=5, image_size=8, patch_size=4, num_heads=2, depth=1)
WIDTHS = (0.25, 0.5, 0.75, 1.0)
# 22 steps an epoch. Four patches an image: with sixteen, so few steps would teach little.
TINY = {"epochs": 12.0, "model.width": 16, "model.depth": 1, "model.num_heads": 2,
        "model.patch_size": 16, "model.smallest_ratio": 0.5, "model.granularity": 0.5,
        "objective.ratios": (0.5, 1.0), "optim.lr": 1e-2, "optim.warmup_epochs": 1.0,
        "phases.full_epochs": 1.0, "validation.every_epochs": 50.0,
        "checkpoint.every_epochs": 10.0, "step.ema_decay": 0.9}
BARS = {"0.5": 0.3, "1": 0.5}      # a tenth is chance


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def filled(shapes, seed: int) -> dict:
    """Weights that are far from any start."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), shapes)


STUDENT = create_model("scala", width=16, granularity=0.25, drop_path=0.0, **TOY)
# One net fewer between the ends: two that are taught tell apart who teaches the smallest.
THREE = STUDENT.clone(smallest_ratio=0.5)
TEACHER = create_model("deit", width=12, distilled=True, **TOY)


def made(signal="tokens", phase=Phase(), student=STUDENT, teacher=TEACHER, **options):
    """(objective, parameters, `fixed`, a batch)."""
    aim = foundation(Forward(student, phase, {}), phase, Forward(teacher, Phase(), {}),
                     signal=signal, **options)
    shapes = interop.shapes(student)["params"]
    if aim.init:
        shapes = shapes | {"objective": jax.eval_shape(aim.init, KEY)}
    fixed = {"collections": {}, "step": 0, "teacher": {
        "params": filled(interop.shapes(teacher)["params"], 1), "collections": {}}}
    rng = np.random.default_rng(2)
    batch = {"image": jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32),
             "label": jnp.asarray(rng.integers(0, 5, 4))}
    return aim, filled(shapes, 0), fixed, batch


def test_the_feature_loss_is_proteus():
    """The class token counts in both terms; a class token alone has the first."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    token, whole = 0.0, 0.0
    for b in range(3):
        for m in range(5):
            for d in range(4):
                square = (student[b, m, d] - teacher[b, m, d]) ** 2
                whole += square / (3 * 5 * 4)
                token += square / (3 * 4) if m == 0 else 0
    np.testing.assert_allclose(feature_loss(student, teacher), token + whole, rtol=1e-5)
    np.testing.assert_allclose(feature_loss(student[:, :1], teacher[:, :1]), token, rtol=1e-5)


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_the_divergence_is_tempered_and_a_mean_over_images(T):
    student, teacher = 3 * np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    p, q = softmax(teacher / T), softmax(student / T)
    expected = T ** 2 * sum((p[b] * np.log(p[b] / q[b])).sum() for b in range(6)) / 6
    np.testing.assert_allclose(divergence(student, teacher, T), expected, rtol=1e-5)


def test_a_projector_is_a_norm_and_a_linear_map_for_each_kind_of_token():
    rng, heads = np.random.default_rng(0), {}
    for head in ("token", "feature"):
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
        heads[head] = {"norm": {"scale": draw(4), "bias": draw(4)},
                       "proj": {"kernel": draw(4, 3), "bias": draw(3)}}
    tokens = rng.normal(size=(2, 5, 4)).astype(np.float32)
    for have in (("token",), ("token", "feature")):
        found = projected({head: heads[head] for head in have}, 3, jnp.asarray(tokens))
        assert found.shape == (2, 5 if have[1:] else 1, 3)
        for b in range(2):
            for m in range(found.shape[1]):
                head, x = heads["token" if m == 0 else "feature"], tokens[b, m]
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
                x = x * head["norm"]["scale"] + head["norm"]["bias"]
                np.testing.assert_allclose(
                    found[b, m], x @ head["proj"]["kernel"] + head["proj"]["bias"], atol=1e-5)


@pytest.mark.parametrize("student, signal, transfer", [
    (STUDENT, "tokens", "progressive"), (THREE, "class", "teacher"), (THREE, "logits", "full")],
    ids=["tokens-progressive", "class-teacher", "logits-full"])
def test_a_step_is_the_sum_of_its_nets_and_reads_no_label(student, signal, transfer):
    """Loss and gradient against one net after the other; all widths are in every step."""
    options = {"temperature": 2.0} if signal == "logits" else {}
    aim, params, fixed, batch = made(signal, student=student, transfer=transfer, **options)
    nets = dict(zip(("full", "3q", "2q", "1q") if student is STUDENT else ("full", "3q", "1q"),
                    student.ratios[::-1], strict=True))
    found = TEACHER.apply({"params": fixed["teacher"]["params"]}, batch["image"],
                          method="features")
    given = {"logits": found["logits"], "class": found["tokens"][:, :1],
             # The second token of a distilled teacher is left out.
             "tokens": jnp.delete(found["tokens"], 1, 1)}[signal]

    def says(params, ratio):
        out = student.apply({"params": {k: v for k, v in params.items() if k != "objective"}},
                            batch["image"], ratio=ratio, method="features")
        if signal == "logits":
            return out["logits"]
        return projected(params["objective"][f"width{ratio:g}"], 12, out["tokens"])

    def slow(params):
        total, teaching, each = 0.0, given, {}
        for net, ratio in nets.items():
            said = says(params, ratio)
            each[net] = (divergence(said, teaching, 2.0) if signal == "logits" else
                         feature_loss(said, teaching))
            total += each[net]
            if transfer == "progressive" or transfer == "full" and net == "full":
                teaching = jax.lax.stop_gradient(said)
        return total, each

    (expected, each), slow_grads = jax.jit(jax.value_and_grad(slow, has_aux=True))(params)
    gradients = jax.jit(aim.gradients)
    (loss, aux), grads = gradients(params, fixed, batch, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for net, value in each.items():
        np.testing.assert_allclose(aux.metrics[f"loss_{net}"][0], value, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grads, slow_grads)
    assert ("top1" in aux.metrics) == (signal == "logits")
    (other, _), _ = gradients(params, fixed, batch | {"label": (batch["label"] + 1) % 5}, KEY)
    assert other == loss


def test_a_net_moves_its_own_slice_and_projector_alone():
    """The full net's phase moves no narrow projector; a narrow net's pass none but its own, and
    outside of its slice nothing; the classifier learns nothing from features."""
    aim, params, fixed, batch = made("class", Phase(objective=FULL))
    _, grads = jax.jit(aim.gradients)(params, fixed, batch, KEY)
    moved = lambda tree: any(np.any(leaf) for leaf in jax.tree.leaves(tree))
    assert [moved(grads["objective"][f"width{r:g}"]) for r in WIDTHS] == [False] * 3 + [True]
    assert not moved(grads["head"]) and moved(grads["patch_embed"])
    net = lambda params: projected(
        params["objective"]["width0.25"], 12,
        Forward(STUDENT, Phase(), {})(params, fixed, batch["image"], None, method="features",
                                      ratio=0.25)[0]["tokens"]).sum()
    grads = jax.jit(jax.grad(net))(params)
    assert [moved(grads["objective"][f"width{r:g}"]) for r in WIDTHS] == [True] + [False] * 3
    kernel = grads["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert np.any(kernel[:4, :16]) and not np.any(kernel[4:]) and not np.any(kernel[:, 16:])


@pytest.mark.parametrize("options, message", [
    (dict(student=STUDENT.clone(distilled=True)), "with one head"),
    (dict(student=STUDENT.clone(granularity=None)), "granularity = None"),
    (dict(student=create_model("deit", width=16, **TOY)), "a model of many widths"),
    (dict(temperature=2.0), "objective.temperature = 2: only objective.signal = logits reads it"),
    (dict(teacher=create_model("deit", width=16, **TOY | {"patch_size": 2})),
     "the teacher has 16 patches, the model 2 x 2 = 4, and tokens are not resampled"),
    (dict(signal="logits", teacher=create_model("deit", width=16, **TOY | {"num_classes": 7})),
     "the teacher has 7 classes, the data have 5"),
    (dict(signal="class", teacher=create_model("asvit_tiny", num_classes=5, image_size=32)),
     "objective.signal = class: AsViT gives no class token")])
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_without_a_teacher_only_training_is_refused():
    alone = foundation(Forward(STUDENT, Phase(), {}), Phase(), None)
    assert "needs a teacher" in alone.missing and "teacher.stored" in alone.missing
    assert alone.predictions is None and alone.init is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("foundation")


def taught(signal: str, **changes):
    """A run's config: the evaluated images in training, nothing else in the way."""
    return vit_efficient.config("scala:digits,foundation", TINY | {
        "objective.signal": signal, "augment.crop": "center"} | changes)


def elsewhere(folder, kind: str, rows: np.ndarray) -> str:
    """A stored teacher that another program has made for the digits."""
    source = open_data(source="digits").train
    labels, means = describe(source, sampled(len(source)))
    folder.mkdir()
    np.save(folder / "features.npy", rows.astype(np.float16))
    (folder / "features.json").write_text(json.dumps(
        {"format": 1, "kind": kind, "crop": 1.0, "labels": labels, "means": means}))
    return str(folder)


def one_hot() -> np.ndarray:
    return np.eye(10)[open_data(source="digits").train.labels]


@pytest.fixture(scope="module")
def run(folder):
    """A run taught by class tokens, of which ten numbers tell the class and 64 are pixels."""
    pixels = open_data(source="digits").train.images[..., 0].reshape(1438, -1) / 256
    stored = elsewhere(folder / "class", "class", np.concatenate([3 * one_hot(), pixels], 1))
    config = taught("class", **{"teacher.stored": stored})
    assert train(config, folder / "taught") == {}
    return config, folder / "taught"


def test_stored_features_teach_as_their_model_does(folder):
    """The first batch's loss, under the same weights; float16 is the difference."""
    config = vit_efficient.config("scala:digits", TINY | {"objective.name": "separate"})
    workdir, made = folder / "teacher", assemble(config)
    store(config, workdir)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(1, made.fresh_state(), {"top1": 0.1}, made.fingerprint())
    features(config, workdir, out=str(folder / "tokens"), kind="tokens")
    stored = assemble(taught("tokens", **{"teacher.stored": str(folder / "tokens")}))
    live = assemble(taught("tokens", **{"teacher.workdir": str(workdir)}))
    params, losses = filled(stored.abstract_state.params, 3), []
    for each in (stored, live):
        batch = TrainBatches(each.data.train, each.augment.train, each.phases, 64, 32, Share(),
                             0, 0, each.stored)[0]
        assert ("teacher" in batch) == (each is stored)
        batch = each.augment.on_device(batch, KEY, 10)
        fixed = {"collections": {}, "step": 0, **each.frozen()}
        aim = each.objective(Phase(objective=FULL))
        losses.append(jax.jit(aim.gradients)(params, fixed, batch, KEY)[0][0])
    np.testing.assert_allclose(*losses, rtol=2e-3)
    assert losses[0] > 0.1


def test_projectors_are_trained_averaged_stored_and_resumed_exactly(run, tmp_path):
    config, workdir = run
    expected = final_state(workdir)
    for tree in ("params", "ema/params", "opt_state"):
        assert any(name.startswith(tree) and "objective/width0.5/token/proj/kernel" in name
                   for name in expected)
    again = shutil.copytree(workdir, tmp_path / "again")
    steps = sorted(int(path.name) for path in (again / "checkpoints").iterdir())
    shutil.rmtree(again / "checkpoints" / str(steps[-1]))
    train(config, again)
    assert final_state(again) == expected


def test_an_export_has_no_projector_and_the_runs_features(run, tmp_path):
    config, workdir = run
    export(config, workdir, out=str(tmp_path / "x.pth"), kind="raw", weights="latest")
    model = assemble(config).model
    read = files.state_dict(files.read(tmp_path / "x.pth"))
    assert list(read) == list(interop.layout(model))
    variables = interop.from_torch(model, read)
    _, fields = start_weights(assemble(config), workdir, "latest")
    assert "objective" in fields["params"]
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    forward = Forward(model, Phase(), {})
    for ratio in (0.5, 1.0):
        found = model.apply(variables, images, ratio=ratio, method="features")
        own = forward(fields["params"], {"collections": {}}, images, None, method="features",
                      ratio=ratio)[0]
        jax.tree.map(np.testing.assert_array_equal, found, own)
    assert interop.shapes(model)["params"].keys() == given_weights(model, str(workdir)
                                                                   )["params"].keys()


def test_another_objective_starts_from_such_a_run_and_its_accuracy_is_not_claimed(run, tmp_path):
    config, workdir = run
    with pytest.raises(ValueError, match="objective.signal = class: .* train no classifier"):
        evaluate(config, workdir)
    other = vit_efficient.config("scala:digits", TINY | {"init_from": str(workdir)})
    assert "objective" not in start_weights(assemble(other), tmp_path, "best")[1]["params"]
    assert "objective" not in start_weights(assemble(other), workdir, "latest")[1]["params"]


def neighbours(run, params) -> dict[float, float]:
    """Share of 359 held-out digits whose nearest training digit, by the cosine of class tokens, is
    of their class, at each of two widths."""
    forward, found = Forward(run.model, Phase(), {}), {}
    arrays = [np.stack([run.augment.evaluate(source[i][0], 32) for i in range(len(source))])
              for source in (run.data.train, run.data.val)]
    labels = [source.labels for source in (run.data.train, run.data.val)]
    for ratio in (0.5, 1.0):
        says = jax.jit(lambda images: forward(
            params, {"collections": {}}, run.augment.normalize({"image": images})["image"], None,
            method="features", ratio=ratio)[0]["tokens"][:, 0])
        near, far = (np.asarray(says(images)) for images in arrays)
        near, far = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (near, far))
        found[ratio] = float((labels[0][(far @ near.T).argmax(1)] == labels[1]).mean())
    return found


def test_features_alone_teach_every_width(run):
    config, workdir = run
    made = assemble(config)
    untrained = neighbours(made, made.fresh_state().params)
    trained = neighbours(made, start_weights(made, workdir, "latest")[1]["params"])
    for ratio in trained:
        assert trained[ratio] > untrained[ratio]


@pytest.mark.slow
def test_logits_alone_teach_the_classifier(folder):
    """Held-out top-1 from stored logits, at every width."""
    stored = elsewhere(folder / "logits", "logits", 6 * one_hot())
    scores = train(taught("logits", **{"teacher.stored": stored, "objective.temperature": 2.0}),
                   folder / "classifier")
    for width, bar in BARS.items():
        assert scores[f"top1_width{width}"] > bar


def test_another_stored_teacher_is_refused_on_resuming(run, folder, tmp_path):
    other, again = tmp_path / "class", tmp_path / "again"
    shutil.copytree(folder / "class", other)
    shutil.copytree(run[1], again)
    array = np.load(other / "features.npy")
    array[0] += 1
    np.save(other / "features.npy", array)
    stored = again / "config.json"
    stored.write_text(stored.read_text().replace(str(folder / "class"), str(other)))
    with pytest.raises(ValueError, match="teacher.stored = .*: it is not the teacher that step"):
        train(load_stored(again), again)
