"""Scala's golden numbers: the sliced model at every width, what stands inside it, its exported
slices, the steps of its training."""
from collections import Counter
from functools import partial
import random
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.fill import fill, image
from tests.golden.reader import Fixture, Tracked
from vit_efficient.engine import optim
from vit_efficient.engine.scores import scores
from vit_efficient.layers.position import resize_bicubic
from vit_efficient.papers.scala import objective
from vit_efficient.papers.scala.models import Scala
from vit_efficient.papers.scala.phases import FULL, full_net_first
from vit_efficient.papers.scala.widths import draw, drawn
from vit_efficient.seams.objective import Forward
from vit_efficient.seams.phases import Length, Phase
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model

# of logits and of what stands inside: ours are 3e-6 off
ATOL = 2e-5
# arguments of the official constructors that have another name here
NAMES = {"img_size": "image_size", "embed_dim": "width", "drop_path_rate": "drop_path"}
TRAINING = ("drop_rate", "attn_drop_rate")      # nothing in evaluation, 0 in every recipe
CLASSES = {"vit": False, "distilled_vit": True}


def build(config: Tracked) -> Scala:
    """The model that the text describes."""
    options, kwargs, name = {}, config["kwargs"].plain(), config["variant"]
    if name in CLASSES:         # the bare class, with timm's defaults
        kwargs = {"embed_dim": 768, "num_heads": 12} | kwargs
        name, options = "scala", {"distilled": CLASSES[name]}
    options |= {NAMES.get(key, key): value for key, value in kwargs.items()
                if key not in TRAINING}
    if granularity := config.get("mode", {}).get("granularity"):
        options |= {"granularity": granularity}
    return create_model(name, **{"granularity": None, "scan": True} | options)


def load(fixture: Fixture) -> tuple[Scala, dict]:
    """The model that the file describes and its variables, both ways through the state_dict."""
    config, model = fixture.config, build(fixture.config)
    state = fixture.state_dict()
    for entry, factor in config.get("weight_scale", {}).items():
        state[entry] = state[entry] * np.float32(factor)
    variables = interop.from_torch(model, state)
    back = interop.to_torch(model, variables)
    params = {entry: (array.shape, str(array.dtype)) for entry, array in back.items()}
    assert list(params.items()) == list(fixture.params().items())
    for entry, array in back.items():
        np.testing.assert_array_equal(array, state[entry])
    return model, variables


def images(fixture: Fixture) -> np.ndarray:
    """The images [B, S, S, 3] that the file names."""
    return image(*(fixture.config["input"][key] for key in ("batch", "size", "seed")))


def inner(model: Scala, variables: dict, x: np.ndarray, ratio: float) -> dict[str, jax.Array]:
    """What stands inside the sub-net of width `ratio`, by the names of the files."""
    net = model.subnet(ratio).clone(scan=False)

    @jax.jit
    def run(narrow, x):
        return net.apply(narrow, x, method="features", capture_intermediates=True,
                         mutable=["intermediates"])

    features, captured = run(model.sliced(variables, ratio), x)
    tokens = features["tokens"]
    found = {"patch_embed": features["patch_embed"], "tokens_in": features["tokens_in"],
             "feat": tokens, "feat_cls": tokens[:, 0], "feat_dist": tokens[:, 1]}
    for i in range(model.depth):
        block = captured["intermediates"][f"blocks_{i}"]
        found[f"block{i}.out"] = block["__call__"][0]
        found |= {f"block{i}.{part}": block[part]["__call__"][0]
                  for part in ("norm1", "attn", "norm2", "mlp")}
    return found


def forward(fixture: Fixture) -> None:
    """Every width of the model in float32; the narrowest and the widest also in bfloat16."""
    (model, variables), x = load(fixture), images(fixture)
    keys, ratios = fixture.config["keys"], list(fixture.config["ratios"])
    corner = tuple(slice(int(low), int(high)) for low, high in
                   re.findall(r"(\d+):(\d+)", keys.get("corner", "")))
    for ratio in ratios:
        wanted = [name.split("@")[0] for name in fixture.matching(f"*@{ratio}")]

        @jax.jit
        def run(variables, x):
            heads = model.apply(variables, x, ratio=ratio, train=True) if "cls" in wanted else ()
            return model.apply(variables, x, ratio=ratio), heads

        logits, heads = run(variables, x)
        found = {"logits": logits} | dict(zip(("cls", "dist"), heads))
        if set(wanted) - set(found):
            found |= inner(model, variables, x, ratio)
        for name in wanted:
            value, key = found[name], f"{name}@{ratio}"
            if corner and value.shape != fixture.shape(key):
                value = value[corner]
            fixture.expect(key, value, atol=ATOL)
        if ratio in (min(ratios), max(ratios)) and "weight_scale" not in fixture.config:
            rough = jax.jit(model.clone(dtype=jnp.bfloat16).apply, static_argnames="ratio")
            error = np.sqrt(np.square(rough(variables, x, ratio=ratio) - logits).mean())
            assert error < 0.05 * np.std(logits), f"bfloat16 at ratio {ratio}"


def export(fixture: Fixture) -> None:
    """Slices as DeiTs of their own: entries, sums, logits, and the sizes stored beside them."""
    (model, variables), x, config = load(fixture), images(fixture), fixture.config
    assert model.num_heads == config["full_heads"]
    assert model.smallest_ratio == config["smallest_ratio"]
    assert model.largest_ratio == config["largest_ratio"]
    for ratio in config["ratios"]:
        net, weights = model.subnet(ratio), model.sliced(variables, ratio)
        state = interop.to_torch(net, weights)
        assert config["standalone"][f"{ratio}"].plain() == {
            "embed_dim": net.width, "num_heads": net.num_heads,
            "head_dim": net.width // net.num_heads, "layer_norm_eps": net.epsilon,
            "params": sum(array.size for array in state.values()),
            "state": [[name, list(array.shape)] for name, array in state.items()]}
        checksums = config["checksums"][f"{ratio}"].plain()
        assert list(checksums) == list(state)
        for name, sums in checksums.items():
            array = state[name].astype(np.float64)
            # only the queries are multiplied, and may be rounded in another order
            rtol = 1e-7 if "qkv" in name else 1e-13
            np.testing.assert_allclose((array.sum(), np.abs(array).sum()), sums, rtol=0,
                                       atol=rtol * np.abs(array).sum(), err_msg=name)
        for key in fixture.matching(f"slice:*@{ratio}"):
            fixture.expect(key, state[key.split(":")[1].split("@")[0]], rtol=1e-6)
        sliced = jax.jit(model.apply, static_argnames="ratio")(variables, x, ratio=ratio)
        fixture.expect(f"logits@{ratio}", sliced, atol=ATOL)
        fixture.expect(f"logits@{ratio}", jax.jit(net.apply)(weights, x), atol=ATOL)


def pos_embed_resize(fixture: Fixture) -> None:
    """Position tables on other grids; a table is given as the text of its `fill`."""
    for name, case in fixture.config["cases"].items():
        entry, *shape = re.fullmatch(r"fill\('(.+)', \((\d+), (\d+), (\d+)\)\)",
                                     case["in"]).groups()
        table = fill(entry, tuple(map(int, shape)))
        assert table.shape[1] == case["prefix_tokens"] + case["old_grid"] ** 2
        out = resize_bicubic(table, case["new_grid"], case["prefix_tokens"])
        fixture.expect(f"out:{name}", out, atol=1e-5)


def evaluate(fixture: Fixture) -> None:
    """Top-1, top-5 and the loss at three widths, the last batch being shorter."""
    (model, variables), config = load(fixture), fixture.config
    sizes, side = config["input"]["batches"].plain(), config["input"]["size"]
    labels = np.split(fixture.given("labels"), np.cumsum(sizes)[:-1])
    for ratio in config["ratios"]:
        run, totals, losses = jax.jit(partial(model.apply, ratio=ratio)), Counter(), []
        for i, label in enumerate(labels):
            logits = run(variables, image(sizes[i], side, 20 + i))
            found = scores(logits, {"label": jnp.asarray(label),
                                    "weight": jnp.ones(len(label), jnp.float32)})
            totals.update({name: float(total) for name, (total, _) in found.items()})
            losses.append(float(found["loss"][0]) / len(label))
        accuracies = [100 * totals[name] / sum(sizes) for name in ("top1", "top5")]
        # The authors' loss: a mean of the batches' means.
        fixture.expect(f"stats@{ratio}", [*accuracies, np.mean(losses)], rtol=1e-5)


def sampling(fixture: Fixture) -> None:
    """Which widths the intermediate nets may have, and how often they have them."""
    for key, support in fixture.config["supports"].items():
        smallest, largest, granularity = map(float, key.split(","))
        ratios = create_model("scala", smallest_ratio=smallest, largest_ratio=largest,
                              granularity=granularity).ratios
        upper, lower = ([ratios[i] for i in places] for places in drawn(len(ratios)))
        if error := support.get("official_error"):
            assert "empty range" in error and (upper, lower) == ([0.75], [0.5])
            continue
        assert support["order"] == "each step: l, 3q, 2q, s"
        assert upper == support["3q_support"].plain() and lower == support["2q_support"].plain()
        keys = jax.random.split(jax.random.key(0), 2000)
        draws = jax.vmap(lambda key: {name: chosen for name, (_, chosen)
                                      in draw(key, len(ratios)).items()})(keys)
        for name, places in (("3q", upper), ("2q", lower)):
            share = np.bincount(draws[name], minlength=len(places)) / len(keys)
            # Each a draw of 800 or of ours: five deviations of their difference.
            fixture.expect(f"freq{name}@{key}", share,
                           atol=5 * (1 / len(places) * (1 / 800 + 1 / len(keys))) ** 0.5)
        for seed in range(4):
            name = f"draws@{key}@seed{seed}"
            theirs = fixture.values(name)
            assert set(theirs[:, 0]) == {largest} and set(theirs[:, 3]) == {smallest}
            assert set(theirs[:, 1]) <= set(upper) and set(theirs[:, 2]) <= set(lower)


def schedule(fixture: Fixture) -> None:
    """Learning rates of every epoch; which parameters decay."""
    for name, recipe in fixture.config["recipes"].items():
        arguments = dict(zip(*[iter(recipe["argv"].plain())] * 2))
        batch = int(arguments.get("--batch-size", 64)) * recipe["world_size"]
        lr, epochs = float(arguments.get("--lr", 5e-4)), recipe["epochs"]
        warmup = recipe["warmup_epochs"]
        assert int(arguments.get("--epochs", 300)) == epochs
        assert float(arguments.get("--warmup-epochs", 5)) == warmup
        np.testing.assert_allclose(lr * batch / 512, recipe["scaled_lr"], rtol=1e-12)
        # An epoch that a resumed run of theirs begins with is a step of the schedule ahead.
        for key, lag in (("lr", 1), ("lr_resume", 0)):
            rate = optim.learning_rate(
                Length(batch, batch, epochs), lr=lr, lr_batch=512, schedule="official",
                warmup_epochs=warmup, warmup_lr=recipe["warmup_lr"], min_lr=recipe["min_lr"],
                halved_epochs=10, lag=lag)
            found = np.array([rate(epoch) for epoch in range(epochs)])
            if not lag:                         # theirs starts as an uninterrupted run does
                found[0] = fixture.values(f"lr_resume@{name}64")[0]
            fixture.expect(f"{key}@{name}64", found, rtol=2e-6, atol=1e-9)
    for name, groups in fixture.config["optimizer_groups"].items():
        model = create_model(name)
        params = interop.shapes(model)["params"]
        decays = interop.to_torch(model, {"params": jax.tree.map(
            lambda leaf, decays: np.full(leaf.shape, decays, np.float32), params,
            optim.decays(model.no_decay)(params))})
        for group in groups:
            expected = group["weight_decay"] > 0
            assert group["betas"].plain() == [0.9, 0.999] and group["eps"] == 1e-8
            assert sorted(group["params"].plain()) == sorted(
                entry for entry, array in decays.items() if bool(array.flat[0]) == expected)


def options(mode: Tracked) -> dict:
    """Our names for the switches of a training step."""
    soft, none = mode["targets"] == "soft", mode["distillation_type"] == "none"
    assert mode.get("smoothing", 0.0) == 0
    shared = dict(
        # Given distributions are smoothed already.
        label_smoothing=0.0 if soft else 0.1, kind=mode["distill_type"], bce=mode.get("bce", False),
        taught={"cls_token": "class", "dist_token": "distillation"}[mode["token_type"]],
        transfer={"US": "full"}.get(mode["transfer_type"], mode["transfer_type"]),
        labels={"teacher": "full", "one_hot": "given"}[mode["ce_type"]],
        ce_weight=mode["ce_coefficient"])
    own = dict(distillation="hard" if none else mode["distillation_type"], alpha=mode["alpha"],
               temperature=mode["tau"])
    return shared | own


def passes(widths: list[float], ratios: tuple[float, ...]) -> dict:
    """`widths.draw` where these nets, the full one first, had to come."""
    places = [int(np.argmin(np.abs(np.array(ratios) - width))) for width in widths[1:]]
    return {name: (range(place, place + 1), 0)
            for name, place in zip(("3q", "2q", "1q"), places)}


def training(fixture: Fixture, config: Tracked, mode: str, params: dict) -> None:
    """Losses, outputs, and gradients after each pass; parameters and EMA after the last step."""
    model, how = build(config), config["mode"]
    # The toy files name their input once for all modes.
    inputs = config.get("input") or fixture.config["input"]
    key = lambda name: f"{mode}{name}"
    variables = interop.from_torch(model, {name: fill(name, shape).astype(dtype)
                                           for name, shape, dtype in params})
    assert config["param_names"].plain() == [name for name, *_ in params]
    weights, warmup = variables["params"], how["full_warm_epoch"]
    widths, targets = fixture.given(key("widths")), fixture.given(key("targets"))
    signals = fixture.given(key("teacher"))
    phases = full_net_first(Length(4, 4, 300), model, full_epochs=warmup)
    assert config.get("classes", model.num_classes) == model.num_classes
    places, rng = drawn(len(model.ratios)), random.Random(how["random_seed"])
    for row in widths:                      # as the authors' loop draws them
        theirs = [model.ratios[rng.randint(part[0], part[-1])] for part in places]
        assert len(row) == 1 or list(row[1:3]) == theirs
    assert (phases.phase_at(how["epoch"]).objective == FULL) == (len(widths[0]) == 1)
    teacher = (lambda params, fixed, images, key: (params, {})) if model.distilled else None
    chosen = options(how)

    def gradients(weights: dict, i: int) -> tuple[list, list]:
        """Of step i: what the objective gives for its first pass, for two passes and so on, and
        each pass's outputs."""
        x = image(inputs["batch"], inputs["size"], inputs["seeds"][i])
        batch, key = {"image": x, "label": jnp.asarray(targets[i])}, jax.random.key(0)

        @jax.jit
        def run(weights, signal):
            given, outputs = [], []
            fixed = {"collections": {}, "step": 0,
                     "teacher": {"params": signal, "collections": {}}}
            for k, width in enumerate(widths[i]):
                phase = Phase() if k else Phase(objective=FULL)
                made = objective.scala(Forward(model, phase, {}), phase, teacher, ratios=None,
                                       **chosen)
                forced = passes(list(widths[i][:k + 1]), model.ratios)
                with mock.patch("vit_efficient.papers.scala.widths.draw",
                                lambda key, count: forced):
                    given.append(made.gradients(weights, fixed, batch, key))
                outputs.append(model.apply({"params": weights}, x, ratio=width, train=True,
                                           rngs={"dropout": key}))
            return given, outputs
        return run(weights, signals[i])

    transform = optim.make_optimizer(Length(4, 4, 1), model.no_decay, lr=how["lr"],
                                     weight_decay=how["weight_decay"]).transform
    optimizer = optim.Optimizer(transform, lambda step: how["lr"])
    opt_state, losses = transform.init(weights), []
    names = [f"loss_{net}{part}" for net in ("3q", "2q", "1q") for part in ("", "_ce")]
    for i in range(len(widths)):
        given, outputs = gradients(weights, i)
        (loss, aux), grads = given[-1]
        losses.append([loss] + [aux.metrics.get(name, (0.0, 1))[0] for name in
                                ("loss_full", *names)])
        weights, opt_state = optim.apply(optimizer, grads, opt_state, weights, jnp.int32(i))
    # AdamW's first steps amplify rounding where gradients are tiny: later steps start apart.
    close = dict(rtol=1e-5, atol=2e-6) if len(widths) == 1 else dict(rtol=2e-3, atol=1e-3)
    first = np.float32(losses[0])
    np.testing.assert_allclose(first, fixture.values(key("losses"))[0], rtol=1e-5, atol=1e-6)
    fixture.expect(key("losses"), losses, **close)
    for k, out in enumerate(outputs):
        heads = {"cls_out": out[0], "dist_out": out[1]} if model.distilled else {"out": out}
        for head, logits in heads.items():
            fixture.expect(key(f"{head}:{k}"), logits,
                           **close | dict(atol=max(close["atol"], ATOL)))
    norms = []
    for _, grads in given:
        found = interop.to_torch(model, {"params": grads})
        norms.append([np.linalg.norm(grad.astype(np.float64)) for grad in found.values()])
    fixture.expect(key("grad_norms"), norms, **close | dict(atol=10 * close["atol"]))
    for name in fixture.matching(key("grad:*")):
        grad = found[name.partition("grad:")[2]]
        fixture.expect(name, grad, **close | dict(atol=10 * close["atol"]))
    after = interop.to_torch(model, {"params": weights})
    for name in fixture.matching(key("after:*")):
        entry = name.partition("after:")[2]
        tiny = np.abs(found[entry]) <= 1e-5
        fixture.expect(name, after[entry], atol=np.where(tiny, 2 * how["lr"], 2e-6))
    for name in fixture.matching(key("ema:*")):
        entry, decay = name.partition("ema:")[2], how["ema_decay"]
        start = interop.to_torch(model, variables)[entry]
        tiny = np.abs(found[entry]) <= 1e-5
        fixture.expect(name, decay * start + (1 - decay) * after[entry],
                       atol=np.where(tiny, 2 * how["lr"], 2e-6))


def train_step(fixture: Fixture) -> None:
    """One step, or several."""
    training(fixture, fixture.config, "", fixture.text("params").plain())


def train_modes(fixture: Fixture) -> None:
    """One step under each switch."""
    for mode, config in fixture.config["modes"].items():
        training(fixture, config, f"{mode}|", fixture.text("params")[mode].plain())


CHECKS = {"forward": forward, "export": export, "pos_embed_resize": pos_embed_resize,
          "evaluate": evaluate, "sampling": sampling, "schedule": schedule,
          "train_step": train_step, "train_steps": train_step, "train_modes": train_modes}
LATER = {}
