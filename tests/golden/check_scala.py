"""Scala's golden numbers: the sliced model at every width, what stands inside it, its exported
slices, the steps of its training."""
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
import random
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.fill import fill, image
from tests.golden.reader import Fixture, Tracked, constructed
from tests.golden.scala_recipe import sampling, schedule
from vit_efficient.engine import optim
from vit_efficient.engine.scores import scores
from vit_efficient.layers.position import resize_bicubic
from vit_efficient.papers.scala import objective
from vit_efficient.papers.scala.models import Scala
from vit_efficient.papers.scala.phases import FULL, full_net_first
from vit_efficient.papers.scala.widths import after, drawn
from vit_efficient.seams.objective import Forward
from vit_efficient.seams.phases import Length, Phase
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model

# of logits and of what stands inside: ours are 3e-6 off
ATOL = 2e-5
# Of training's numbers: parts of the array's largest entry, and of the number itself. AdamW's
# first steps amplify rounding where gradients are tiny, so that the last of several starts apart:
# ours are 3e-6 off in one step, 3e-4 in the third.
ONE_STEP = {"outputs": 5e-6, "gradients": 1e-5, "rtol": 1e-5}
LAST_OF_SEVERAL = {"outputs": 4e-4, "gradients": 5e-4, "rtol": 1e-3}
TINY = 1e-5             # gradients whose first updates are rounding, says the file
# arguments of the official constructors that have another name here
NAMES = {"img_size": "image_size", "embed_dim": "width", "drop_path_rate": "drop_path"}
# and those that every model here has alike
FIXED = {"in_chans": 3, "init_values": None, "fc_norm": None, "weight_init": "",
         "pretrained": False}
CLASSES = {"vit": False, "distilled_vit": True}


def build(config: Tracked) -> Scala:
    """The model that the text describes."""
    options, kwargs, name = {}, config["kwargs"].plain(), config["variant"]
    if name in CLASSES:         # the bare class, with timm's defaults
        kwargs = {"embed_dim": 768, "num_heads": 12} | kwargs
        name, options = "scala", {"distilled": CLASSES[name]}
    options |= constructed(kwargs, NAMES, FIXED)
    if granularity := config.get("mode", {}).get("granularity"):
        options |= {"granularity": granularity}
    # Of few blocks a program is smaller without a loop.
    scan = kwargs.get("depth", 12) > 4
    return create_model(name, **{"granularity": None, "scan": scan} | options)


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
            rough = jax.jit(partial(model.clone(dtype=jnp.bfloat16).apply, ratio=ratio))
            error = np.sqrt(np.square(rough(variables, x[:1]) - logits[:1]).mean())
            assert error < 0.05 * np.std(logits[:1]), f"bfloat16 at ratio {ratio}"


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
    source = config["input"]
    sizes, side, seed = source["batches"].plain(), source["size"], source["first_seed"]
    labels = np.split(fixture.given("labels"), np.cumsum(sizes)[:-1])
    for ratio in config["ratios"]:
        run, totals, losses = jax.jit(partial(model.apply, ratio=ratio)), Counter(), []
        for i, label in enumerate(labels):
            logits = run(variables, image(sizes[i], side, seed + i))
            found = scores(logits, {"label": jnp.asarray(label),
                                    "weight": jnp.ones(len(label), jnp.float32)})
            totals.update({name: float(total) for name, (total, _) in found.items()})
            losses.append(float(found["loss"][0]) / len(label))
        accuracies = [100 * totals[name] / sum(sizes) for name in ("top1", "top5")]
        # The authors' loss: a mean of the batches' means.
        fixture.expect(f"stats@{ratio}", [*accuracies, np.mean(losses)], rtol=1e-5)


def options(mode: Tracked, distilled: bool) -> dict:
    """Our names for the switches of a training step."""
    soft, none = mode["targets"] == "soft", mode["distillation_type"] == "none"
    smoothing, taught = mode.get("smoothing"), mode["token_type"]
    assert not (soft and smoothing), "distributions that are given are smoothed already"
    shared = dict(
        # 0.1 is the trainer's default
        label_smoothing=0.0 if soft else 0.1 if smoothing is None else smoothing,
        kind=mode["distill_type"], bce=mode.get("bce", False),
        # a model with one head passes that on, whatever the switch says
        taught={"cls_token": "class", "dist_token": "distillation"}[taught] if distilled
        else "class",
        transfer={"US": "full"}.get(mode["transfer_type"], mode["transfer_type"]),
        labels={"teacher": "full", "one_hot": "given"}[mode["ce_type"]],
        ce_weight=mode["ce_coefficient"])
    own = dict(distillation="hard" if none else mode["distillation_type"], alpha=mode["alpha"],
               temperature=mode["tau"])
    return shared | own


def check_widths(widths: np.ndarray, model: Scala, seed: int) -> None:
    """The widths of every step, largest first, must be those that the authors' loop draws."""
    places, rng = drawn(len(model.ratios)), random.Random(seed)
    for row in widths:
        nets = [model.largest_ratio]
        if len(row) > 1:
            nets += [model.ratios[rng.randint(part[0], part[-1])] for part in places]
            nets.append(model.smallest_ratio)
        np.testing.assert_array_equal(row, np.float32(nets))


@cache
def outputs_program(model: Scala, widths: tuple[float, ...]) -> Callable:
    """`(params, images) -> outputs in training of each width`, compiled."""
    return jax.jit(lambda params, images: [
        model.apply({"params": params}, images, ratio=width, train=True) for width in widths])


def step(model: Scala, widths: tuple[float, ...], switches: dict) -> Callable:
    """`(params, teacher's logits, images, labels) -> loss, metrics, gradients after each pass`;
    the nets after the full one have these `widths`."""
    teacher = (lambda params, fixed, images, key: (params, {})) if model.distilled else None
    phase = Phase() if len(widths) > 1 else Phase(objective=FULL)
    made = objective.scala(Forward(model, phase, {}), phase, teacher, ratios=None,
                           **switches)
    places = [int(np.argmin(np.abs(np.array(model.ratios) - width))) for width in widths[1:]]
    forced = {name: (range(place, place + 1), 0)
              for name, place in zip(("3q", "2q", "1q"), places, strict=len(widths) > 1)}

    def run(params: dict, signal: jax.Array, images: jax.Array, label: jax.Array):
        fixed = {"collections": {}, "step": 0, "teacher": {"params": signal, "collections": {}}}
        totals, key = [], jax.random.key(0)

        def recorded(total: dict, images: jax.Array) -> jax.Array:
            totals.append(total)
            return after(total, images)

        # A net begins after the sum of those before it.
        with (mock.patch("vit_efficient.papers.scala.widths.draw", lambda key, count: forced),
              mock.patch("vit_efficient.papers.scala.widths.after", recorded)):
            (loss, aux), grads = made.gradients(
                params, fixed, {"image": images, "label": label}, key)
        # What the optimizer sees is the objective's own sum.
        return loss, aux.metrics, [*totals, grads]
    return run


def training(fixture: Fixture, config: Tracked, mode: str, params: dict,
             compiled: Callable = jax.jit) -> None:
    """Losses, outputs, and gradients after each pass; parameters and EMA after the last step."""
    model, how = build(config), config["mode"]
    # The toy files name their input once for all modes.
    inputs = config.get("input") or fixture.config["input"]
    key = lambda name: f"{mode}{name}"
    variables = interop.from_torch(model, {name: fill(name, shape).astype(dtype)
                                           for name, shape, dtype in params})
    assert config["param_names"].plain() == [name for name, *_ in params]
    assert config.get("classes", model.num_classes) == model.num_classes
    assert not (model.drop_rate or model.attn_drop_rate or model.drop_path)
    weights, warmup = variables["params"], how["full_warm_epoch"]
    widths, targets = fixture.given(key("widths")), fixture.given(key("targets"))
    signals, epoch = fixture.given(key("teacher")), how["epoch"]
    assert len(widths) == len(targets) == len(inputs["seeds"])
    check_widths(widths, model, how["random_seed"])
    phases = full_net_first(Length(1, 1, max(epoch, warmup) + 1), model, full_epochs=warmup)
    assert (phases.phase_at(epoch).objective == FULL) == (len(widths[0]) == 1)
    switches = options(how, model.distilled)

    transform = optim.make_optimizer(Length(1, 1, 1), model.no_decay, lr=how["lr"],
                                     weight_decay=how["weight_decay"]).transform
    optimizer = optim.Optimizer(transform, lambda step: how["lr"])
    update = jax.jit(partial(optim.apply, optimizer))
    opt_state, losses, ema, smallest = transform.init(weights), [], weights, None
    left = [name for kind in ("after", "ema") for name in fixture.matching(key(f"{kind}:*"))]
    names = [f"loss_{net}{part}" for net in ("3q", "2q", "1q") for part in ("", "_ce")]
    for i, row in enumerate(widths):
        x, nets = image(inputs["batch"], inputs["size"], inputs["seeds"][i]), tuple(row.tolist())
        loss, metrics, totals = compiled(step(model, nets, switches))(
            weights, signals[i], x, targets[i])
        if i == len(widths) - 1:
            outputs = outputs_program(model, nets)(weights, x)
        losses.append([loss] + [metrics.get(name, (0.0, 1))[0] for name in ("loss_full", *names)])
        if i == len(widths) - 1 and not left:
            break
        weights, opt_state = update(totals[-1], opt_state, weights, jnp.int32(i))
        if decay := how.get("ema_decay"):
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * np.asarray(new), ema,
                               weights)
        smallest = jax.tree.map(lambda old, grad: np.minimum(np.abs(old), np.abs(grad)),
                                smallest or totals[-1], totals[-1])
    named = lambda tree: interop.to_torch(model, {"params": tree})
    compare(fixture, key, losses, outputs, [named(total) for total in totals], model.distilled)
    for kind, tree in (("after", weights), ("ema", ema)):
        for name in fixture.matching(key(f"{kind}:*")):
            entry = name.partition(f"{kind}:")[2]
            tiny = named(smallest)[entry] <= TINY
            fixture.expect(name, named(tree)[entry],
                           atol=np.where(tiny, 2 * how["lr"] * len(widths), 2e-6))


def compare(fixture: Fixture, key: Callable, losses: list, outputs: list,
            totals: list[dict[str, np.ndarray]], distilled: bool) -> None:
    """Everything of a training but what it leaves behind; of several steps the first loss is
    compared as closely as of one."""
    close = ONE_STEP if len(losses) == 1 else LAST_OF_SEVERAL
    rtol = close["rtol"]
    np.testing.assert_allclose(np.float32(losses[0]), fixture.values(key("losses"))[0],
                               rtol=ONE_STEP["rtol"])
    fixture.expect(key("losses"), losses, rtol=rtol)
    for k, out in enumerate(outputs):
        heads = {"cls_out": out[0], "dist_out": out[1]} if distilled else {"out": out}
        for head, logits in heads.items():
            atol = close["outputs"] * np.abs(logits).max()
            fixture.expect(key(f"{head}:{k}"), logits, atol=atol, rtol=rtol)
    norms = [[np.linalg.norm(grad.astype(np.float64)) for grad in total.values()]
             for total in totals]
    fixture.expect(key("grad_norms"), norms, rtol=rtol, atol=TINY * np.max(norms) * rtol)
    for name in fixture.matching(key("grad:*")):
        grad = totals[-1][name.partition("grad:")[2]]
        atol = close["gradients"] * np.abs(grad).max()
        fixture.expect(name, grad, atol=atol, rtol=rtol)


def train_step(fixture: Fixture) -> None:
    """One step, or several."""
    training(fixture, fixture.config, "", fixture.text("params").plain())


def train_modes(fixture: Fixture) -> None:
    """One step under each switch: the modes share operations, but no whole program."""
    for mode, config in fixture.config["modes"].items():
        training(fixture, config, f"{mode}|", fixture.text("params")[mode].plain(),
                 compiled=lambda run: run)


CHECKS = {"forward": forward, "export": export, "pos_embed_resize": pos_embed_resize,
          "evaluate": evaluate, "sampling": sampling, "schedule": schedule,
          "train_step": train_step, "train_steps": train_step, "train_modes": train_modes}
LATER = {}
