"""DVT's fixtures, of the authors' code: logits of the three exits, what stands inside, initial
values, position tables, upsampling, counts, decay groups, learning rates."""
from collections import Counter
from collections.abc import Mapping
from functools import partial
import math
import re
from statistics import NormalDist

from flax import linen as nn, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.golden import dvt_budgets, dvt_training
from tests.golden.fill import image
from tests.golden.reader import Fixture, constructed
from vit_efficient import zoo
from vit_efficient.data.device import mixing
from vit_efficient.engine import optim
from vit_efficient.layers.blocks import linear_rates
from vit_efficient.layers.mlp import Mlp
from vit_efficient.papers.dvt import reuse, t2t
from vit_efficient.papers.dvt.models import DVT
from vit_efficient.papers.dvt.transformer import Block, Transformer
from vit_efficient.seams import objective
from vit_efficient.seams.phases import Length
from vit_efficient.weights import interop, names

ATOL = 2e-5             # two implementations in float32 agree within 5e-6
RTOL = 1e-5             # of inner values, which reach 40
NAMES = {"drop_path_rate": "drop_path", "img_size": "image_size"}
FIXED = {"in_chans": 3, "tokens_type": "performer", "token_dim": 64, "hybrid_backbone": None,
         "pretrained": False}     # arguments that our models do not have
FILLED = "fill"         # the weight setting that multiplies nothing
LUCK = 1e-6             # how improbable a draw may be
SIGMAS = 5.0


def build(config: Mapping, **options) -> DVT:
    """The model that the file describes; reuse is on where it does not say."""
    options |= {flag: config[flag] for flag in ("feature_reuse", "relation_reuse")
                if flag in config}
    options |= constructed(config["kwargs"].plain(), NAMES, FIXED)
    return zoo.create_model(config["variant"], **options)


def weights(fixture: Fixture, model: DVT, setting: str) -> dict:
    """The model's variables in one of the weight settings, both ways through the state_dict."""
    state = fixture.state_dict()
    for name, array in state.items():
        if model.t2t and name.endswith(".pos_embed"):
            state[name] = t2t.sinusoid(*array.shape[1:])
    for ends, factor in shrunk(fixture.config["weights"], setting):
        for name, array in state.items():
            state[name] = array * factor if name.endswith(ends) else array
    variables = interop.from_torch(model, state)
    back = interop.to_torch(model, variables)
    assert list(back) == list(state)
    for name, array in state.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array), name
    return variables


def shrunk(texts: Mapping, setting: str) -> list[tuple[tuple[str, ...], np.float32]]:
    """Which entries a weight setting multiplies after one another, by how their names end, and by
    what, as its words say: "as 'fill', then every entry whose name ends with '.kqv.weight' or
    '.kqv.bias' is multiplied by 0.25"."""
    if setting == FILLED:
        return []
    first, ends, factor = re.match(r"as '(\w+)', then every entry whose name ends with (.+?) is "
                                   r"multiplied by ([\d.]*\d)", texts[setting]).groups()
    ends = tuple(word for word in re.findall(r"[\w.]+", ends) if word != "or")
    return [*shrunk(texts, first), (ends, np.float32(factor))]


def images(config: Mapping) -> np.ndarray:
    """The images [B, S, S, 3] that the file names."""
    source = config["input"]
    assert source["fn"] == "image" and config["mode"] == "eval"
    return image(*(source[key] for key in ("batch", "size", "seed")))


def parameters(tree: dict) -> int:
    """Numbers in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def forward(fixture: Fixture) -> None:
    """The three exits in evaluation, the model's size; bfloat16 beside float32."""
    config = fixture.config
    model, x = build(config, scan=True), images(config)
    apply = jax.jit(model.apply)
    for setting in config["weights"]:
        if not fixture.matching(f"{setting}_exit*"):
            continue
        variables = weights(fixture, model, setting)
        assert parameters(variables) == config["param_count"]
        assert parameters(variables["params"]) == config["trainable_count"]
        exits = apply(variables, x)
        assert len(exits) == len(fixture.matching(f"{setting}_exit*"))
        for k, logits in enumerate(exits, 1):
            fixture.expect(f"{setting}_exit{k}", logits, atol=ATOL)
        if setting == FILLED:
            half = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, x[:1])
            for low, logits in zip(half, exits):
                logits = logits[:1]
                error = np.sqrt(np.square(low - logits).mean()) / logits.std()
                assert low.dtype == jnp.float32 and error < 0.05, f"bfloat16: {error:.3f} of std"


def intermediates(fixture: Fixture) -> None:
    """What stands inside the stages. How densely an array is sampled stands in the words of
    `entries`: `[::7]`."""
    config = fixture.config
    model, x = build(config), images(config)
    variables = weights(fixture, model, config["weights_used"])
    kept = lambda module, _: isinstance(module, t2t.Performer | Block | Mlp)
    out, state = jax.device_get(jax.jit(partial(
        model.apply, method="features", capture_intermediates=kept))(variables, x))
    for k, logits in enumerate(out["logits"], 1):
        fixture.expect(f"exit{k}", logits, atol=ATOL)
    rows, entries = config["row_index"].plain(), config["entries"].plain()
    steps = {entry.rpartition("/")[2].partition("*")[0]: int(step[1]) for entry, text
             in entries.items() if (step := re.search(r"\[::(\d+)\]", text))}
    for stage, fields in model.stages().items():
        found = inner(out[stage], state["intermediates"][stage], Transformer(**fields),
                      jnp.asarray(x), rows.get(stage, slice(None)))
        for name in found.keys() & {"block0_tokens_sample", "relation_mlp_out_sample"}:
            text = entries[f"<stage>/{name}"]       # "channels 0,1,last, query rows ::7"
            first = re.search(r"(?:tokens|channels) ([\d,]+),last", text)[1]
            found[name] = found[name][np.array([*map(int, first.split(",")), -1])]
            if step := re.search(r"query rows ::(\d+)", text):
                found[name] = found[name][:, ::int(step[1])]
        wanted = {name.rpartition("/")[2] for name in fixture.matching(f"{stage}/*")}
        assert wanted <= found.keys()
        for name in wanted:
            step = next((steps[start] for start in sorted(steps, key=len, reverse=True)
                         if name.startswith(start)), 1)
            fixture.expect(f"{stage}/{name}", found[name][::step], atol=ATOL, rtol=RTOL)


def inner(out: dict, captured: dict, stage: Transformer, x: jax.Array, rows) -> dict:
    """What stands inside a stage for the first image, by the names of the files."""
    first, last = "layer0", "last_layer"
    blocks = {first: captured["blocks_0"], last: captured[f"blocks_{stage.depth - 1}"]}
    block0, side = blocks[first]["__call__"][0][0][0], stage.sides[0]
    found = {"tokens": out["tokens"][0], "features_sample": out["features"][0],
             "block0_tokens_sample": block0}
    heads = {f"{first}_head0": (0, 0), f"{last}_last_head": (-1, -1)}
    for name, (layer, head) in heads.items():
        found[f"relation_{name}"] = out["relations"][layer, 0, head][rows]
    if stage.t2t:
        windows = t2t.unfold(x, stage.split)[0]
        found["soft_split0_first_last"] = windows[np.array([0, 1, side, -1])]
        for name, performer in captured["tokens_to_token"].items():
            found[f"{name}_sample"] = performer["__call__"][0][0]
    matrix = stage.upstream and jnp.asarray(reuse.token_matrix(stage.upstream, stage.sides[-1]))
    if stage.upstream and stage.relation_reuse:
        for name, (layer, head) in heads.items():
            up = reuse.upsample_relations(out["mixed"][layer, 0, head], matrix)
            found[f"reused_relation_{name}"] = np.asarray(up)[rows]
        L, B, H, *sides = out["mixed"].shape
        channels = out["mixed"].swapaxes(0, 1).reshape(B, L * H, *sides)[0]
        found["relation_mlp_out_sample"] = channels
    if stage.upstream and stage.feature_reuse:
        for name, block in blocks.items():
            context = block["feature_resuse_mlp_1"]["__call__"][0]
            found[f"context_embedding_low_res_{name}_sample"] = context[0]
            found[f"context_embedding_{name}"] = reuse.upsample_tokens(
                jnp.asarray(context), matrix)[0]
    return found


def sinusoid(fixture: Fixture) -> None:
    """Rows of the position tables."""
    for name in fixture.matching("*/rows"):
        variant, stage, _ = name.split("/")
        transformer = Transformer(**zoo.create_model(variant).stages()[stage])
        table = t2t.sinusoid(transformer.sides[-1] ** 2 + 1, transformer.width)
        fixture.expect(f"{variant}/{stage}", table[0, fixture.given(name)], atol=1e-7)


def upsample(fixture: Fixture) -> None:
    """The matrices of one axis, and attention maps on finer grids."""
    finer, config = {}, fixture.config
    for name in fixture.matching("axis_*"):
        coarse, fine = map(int, re.findall(r"\d+", name))
        finer[coarse] = fine
        fixture.expect(name, reuse.axis_matrix(coarse, fine), atol=1e-7)
    steps = dict(re.findall(r"(\w+) keeps the rows \[::(\d+)\]", config["what"]))
    stream = np.random.RandomState(config["seed"]).standard_normal(10 ** 6).astype(np.float32)
    for name in fixture.matching("*_in"):
        maps, out = fixture.given(name), name.replace("_in", "_out")
        starts = np.flatnonzero(stream == maps[0, 0])
        assert any(np.array_equal(stream[i:i + maps.size], maps.ravel()) for i in starts)
        coarse = math.isqrt(len(maps) - 1)
        matrix = jnp.asarray(reuse.token_matrix(coarse, finer[coarse]))
        up = reuse.upsample_relations(jnp.asarray(maps), matrix)
        fixture.expect(out, up[::int(steps.get(out, 1))], atol=2e-6)


def flops(fixture: Fixture) -> None:
    """Parameters and operations of every model and reuse; the words tell the sizes."""
    side, classes = map(int, re.search(r"(\d+)x\1, batch 1, (\d+) classes",
                                       fixture.config["what"]).groups())
    for key, row in fixture.config["table"].items():
        variant, feature, relation = re.fullmatch(r"(\w+)\|F=([01])\|R=([01])", key).groups()
        model = zoo.create_model(variant, num_classes=classes, image_size=side,
                                 feature_reuse=feature == "1", relation_reuse=relation == "1")
        assert parameters(interop.shapes(model)) == row["params"]
        assert len(row["exit"]) == len(model.stages())
        for k, entry in enumerate(row["exit"], 1):
            ours = Counter()
            for (_, operator), count in model.counts(k).items():
                ours[operator] += count
            assert sum(model.macs(exit=k).values()) == ours.total()
            if model.t2t:
                maps = [side ** 2 for fields in model.stages(k).values()
                        for side in Transformer(**fields).sides[:2]]
                assert ours["einsum"] == sum(T * (4 * 64 * 32 + 32) for T in maps)
                ours["einsum"] = sum(map(printed_einsums, maps))
            assert entry["by_operator"].plain() == ours
            assert entry["total"] == ours.total()


def printed_einsums(T: int) -> int:
    """fvcore's count of a performer over T tokens: it reads numpy's report of every product but
    one, in which the operations have four digits."""
    product, norm = T * 64 * 32, T * 32
    report = lambda count: math.floor(float(f"{2 * count:.3e}") / 2)
    return product + 3 * report(product) + report(norm)


def init(fixture: Fixture) -> None:
    """Initial values: the file's draw and ours, each against the distribution."""
    for variant, facts in fixture.config["variants"].items():
        stats = facts["stats"].plain()
        head = stats["normal_token.head.weight"]["shape"]
        model = zoo.create_model(variant, num_classes=head[0])
        used = {}
        with nn.intercept_methods(partial(record, used)):
            drawn = initial(model, tuple(stats))
        for name, row in stats.items():
            ours = drawn[name]
            assert list(ours.shape) == row.pop("shape"), name
            low, high = distribution(name, drawn, row["mean"])
            found = {"mean": ours.mean(), "std": ours.std(), "min": ours.min(), "max": ours.max()}
            if name.rpartition(".")[2] != "w":      # its limits of the deviation are the file's
                assert all(low[key] <= found[key] <= high[key] for key in row), (name, found)
            assert all(low[key] <= row[key] <= high[key] for key in row), (name, row)
        if model.t2t:
            performers(facts, drawn)
        settings(facts, model, used)


def initial(model: DVT, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Initial values by official name; the compiler leaves out those that nobody wants."""
    side, places = model.image_size, interop.layout(model)

    @jax.jit
    def draw(key: jax.Array) -> list[jax.Array]:
        variables = model.init(key, jnp.zeros((1, side, side, 3)))
        flat = traverse_util.flatten_dict(variables)
        return [flat[places[name].path] for name in wanted]

    # The generator of this kind compiles in a third of the time.
    return {name: names.to_official(places[name].path, np.asarray(value))
            for name, value in zip(wanted, draw(jax.random.key(0, impl="rbg")))}


def performers(facts: Mapping, drawn: dict[str, np.ndarray]) -> None:
    """`w w^T` of the performers, [m, m], is m times the identity, up to rounding."""
    grams = [array @ array.T for name, array in drawn.items() if name.endswith(".w")]
    diagonal = [gram.diagonal() for gram in grams]
    others = max(np.abs(gram - np.diag(gram.diagonal())).max() for gram in grams)
    m = len(grams[0])
    for low, high in ((np.min(diagonal), np.max(diagonal)),
                      facts["performer_w_gram_diag_minmax"].plain()):
        assert m - 5e-5 < low <= high < m + 5e-5
    for most in (others, facts["performer_w_gram_offdiag_absmax"]):
        assert 0 <= most < 5e-5


def record(used: dict[str, set[float]], call, args, kwargs, context):
    """Notes a layer norm's epsilon or a dropout's rate in `used`, under its name in a stage."""
    module = context.module
    if isinstance(module, nn.LayerNorm | nn.Dropout):
        stage, _, name = names.official((*module.path, "")).rstrip(".").partition(".")
        value = getattr(module, "epsilon", None) or getattr(module, "rate", None)
        used.setdefault(re.sub(r"Dropout\.\d$", "drop", name), set()).add(value)
    return call(*args, **kwargs)


def settings(facts: Mapping, model: DVT, used: dict[str, set[float]]) -> None:
    """Epsilons, dropout probabilities, scale and stochastic depth, in all stages alike."""
    for group in ("layernorm_eps", "dropout_p"):
        for name, value in facts[group].items():
            assert used[name] == {value}, name
    assert facts["attention_scale"] == (model.width // model.num_heads) ** -0.5
    np.testing.assert_allclose(linear_rates(model.drop_path, model.depth),
                               facts["drop_path"].plain(), rtol=1e-7)


def distribution(name: str, drawn: dict[str, np.ndarray], mean: float) -> tuple[dict, dict]:
    """The lowest and the highest mean, deviation, minimum and maximum that the entry may have;
    `mean` is the file's."""
    module, _, last = name.rpartition(".")
    n, kind = drawn[name].size, module.rpartition(".")[2]
    if last == "pos_embed" and "normal_token.tokens_to_token.project.weight" in drawn:
        table = t2t.sinusoid(*drawn[name].shape[1:]).astype(np.float64)
        return limits(table.mean(), table.std(), table.min(), table.max())
    if re.fullmatch(r"norm\d?", kind) or module.endswith("feature_resuse_mlp.0"):
        one = float(last == "weight")
        return limits(one, 0, one, one)
    if "relation_reuse_conv" in name or "patch_embed" in name:
        bound = math.prod(drawn[f"{module}.weight"].shape[1:]) ** -0.5
        std, inwards = bound / 3 ** 0.5, -2 * bound * math.log(LUCK) / n
        return limits(0, std, -bound, bound, SIGMAS * std / n ** 0.5,
                      SIGMAS * std * (0.2 / n) ** 0.5, inwards)
    if last == "bias":
        return limits(0, 0, 0, 0)
    # the rows of a `w` have the length sqrt(32): their mean gives the deviation
    std = (0.5 - mean ** 2) ** 0.5 if last == "w" else 0.02
    most = std * NormalDist().inv_cdf(1 - LUCK / n)
    inwards = most - std * NormalDist().inv_cdf(LUCK ** (1 / n))
    return limits(0, std, -most, most, SIGMAS * std / n ** 0.5,
                  0 if last == "w" else SIGMAS * std / (2 * n) ** 0.5, inwards)


def limits(mean: float, std: float, least: float, most: float, mean_strays: float = 0,
           std_strays: float = 0, inwards: float = 0) -> tuple[dict, dict]:
    """How low and how high the four numbers may be, rounded to six digits: mean and deviation stray
    both ways, the extrema inwards."""
    low = {"mean": mean - mean_strays, "std": std - std_strays, "min": least, "max": most - inwards}
    high = {"mean": mean + mean_strays, "std": std + std_strays, "min": least + inwards,
            "max": most}
    return tuple({key: value + sign * 1e-6 for key, value in row.items()}
                 for sign, row in ((-1, low), (1, high)))


def param_groups(fixture: Fixture) -> None:
    """Decay group of every entry."""
    for variant, groups in fixture.config["groups"].items():
        model = zoo.create_model(variant)
        shapes = interop.shapes(model)
        decay = traverse_util.flatten_dict(optim.decays(model.no_decay)(shapes["params"]))
        ours = {name: ("decay" if decay[place.path[1:]] else "no_decay")
                if place.path[0] == "params" else "frozen"
                for name, place in interop.layout(model).items()}
        assert list(groups.plain().items()) == list(ours.items())


def schedule(fixture: Fixture) -> None:
    """The learning rate of every epoch."""
    for name, case in fixture.config["cases"].items():
        case = case.plain()
        assert case["sched"] == "cosine" and case["lr_cycle_limit"] == case["lr_cycle_mul"] == 1
        cooldown = case["cooldown_epochs"]
        total = case["epochs"] + cooldown
        rate = optim.learning_rate(
            Length(1, 1, total), lr=case["lr"], schedule="official", lag=0,
            warmup_epochs=case["warmup_epochs"], warmup_lr=case["warmup_lr"],
            min_lr=case["min_lr"], cooldown_epochs=cooldown)
        fixture.expect(name, jax.vmap(rate)(jnp.arange(total)), rtol=1e-6, atol=1e-9)


def mixup_targets(fixture: Fixture) -> None:
    """Labels mixed by a share and smoothed, and both losses of logits against them."""
    label, logits = (jnp.asarray(fixture.given(name)) for name in ("labels", "logits"))
    smoothing, classes = re.search(r"smoothing ([\d.]+), (\d+) classes",
                                   fixture.config["what"]).groups()
    smoothing, classes = float(smoothing), int(classes)
    assert logits.shape == (len(label), classes)
    batch = {"image": jnp.zeros((len(label), 1, 1, 3)),
             "label": jax.nn.one_hot(label, classes)}
    losses = []
    for lam in fixture.config["lams"].plain():
        mixed = mixing.blend(batch, jnp.full((1, 1), lam), lam)["label"]
        target = objective.soft_targets(mixed, classes, smoothing)
        fixture.expect(f"target_lam_{lam}", target, rtol=1e-6, atol=1e-7)
        losses.append(optax.softmax_cross_entropy(logits, target).mean())
    fixture.expect("soft_ce", jnp.stack(losses), rtol=1e-6)
    target = objective.soft_targets(label, classes, smoothing)
    fixture.expect("label_smoothing_ce", optax.softmax_cross_entropy(logits, target).mean(),
                   rtol=1e-6)


def train_step(fixture: Fixture) -> None:
    """Training steps without dropping, see `dvt_training.py`."""
    config = fixture.config
    assert config["mode"].startswith("train, every dropout probability set to 0")
    model = build(config, scan=True)
    if model.t2t:
        model = model.clone(performer_drop=0.0)
    assert not model.drop_path and not model.drop_rate
    source = config["input"]
    assert source["fn"] == "image" and source["note"] == "same batch at every step"
    shown = image(*(source[key] for key in ("batch", "size", "seed")))
    dvt_training.train_step(fixture, model, weights(fixture, model, config["weights_used"]), shown)


CHECKS = {"forward": forward, "intermediates": intermediates, "sinusoid": sinusoid,
          "upsample": upsample, "flops": flops, "init": init, "param_groups": param_groups,
          "schedule": schedule, "mixup_targets": mixup_targets, "train_step": train_step,
          "budgeted": dvt_budgets.budgeted, "budgeted_edge": dvt_budgets.budgeted_edge}
LATER = {}
