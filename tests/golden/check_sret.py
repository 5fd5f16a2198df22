"""SReT's fixtures, of the authors' code: models, modules, initial values, sizes, position
tables, the distillation loss."""
from collections.abc import Iterator
from functools import cache, partial
import re
from unittest import mock

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.fill import fill, image
from tests.golden.reader import Fixture, constructed
from vit_efficient import zoo
from vit_efficient.layers.attention import Attention
from vit_efficient.layers.position import bicubic
from vit_efficient.papers.deit.objective import soft_label_loss
from vit_efficient.papers.sret import blocks
from vit_efficient.papers.sret.models import SReT, sret
from vit_efficient.weights import interop, names

ATOL = 2e-5             # float32 stays within 1.5e-6, small errors move logits by 5e-5
RTOL = 1e-5             # of inner values, which reach 100
RENAMED = {"drop_path_rate": "drop_path"}
FIXED = {"patch_size": 16, "stride": 8, "padding": 0, "in_chans": 3, "pretrained": False}
SLICED = {"SReT": True, "Distilled_SReT": True, "RecursiveTransformer": False,
          "DistilledRecursiveTransformer": False}


def build(kwargs: dict) -> SReT:
    """The model that the authors' constructor makes of `kwargs`."""
    return sret(**constructed(kwargs, RENAMED, FIXED))


def like(named: SReT, model: SReT, *also: str) -> SReT:
    """`named` with the settings of `model` that its name does not say."""
    fields = ("num_classes", "drop_rate", "attn_drop_rate", "drop_path", *also)
    return named.clone(**{field: getattr(model, field) for field in fields})


def parameters(tree: dict) -> int:
    """Numbers in a tree, shared ones once."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def opened(fixture: Fixture) -> tuple[SReT, dict, np.ndarray, list[np.ndarray]]:
    """A file's model, variables, images and permutations; what it says of them is compared."""
    config = fixture.config
    kwargs = config["kwargs"].plain()
    model = build(kwargs)
    assert config["mode"] == "eval" and config["variant"]
    assert SLICED[config["official_class"]] == ("groups1" in kwargs)

    aliases, distinct = fixture.text("aliases").plain(), fixture.text("named_parameters").plain()
    state_dict = fixture.state_dict(aliases)
    variables = interop.from_torch(model, state_dict)
    back = interop.to_torch(model, variables)
    assert list(back) == list(state_dict)
    for name, array in state_dict.items():
        assert back[name].dtype == array.dtype and np.array_equal(back[name], array), name
    every = [model.official_names(path) for path in traverse_util.flatten_dict(variables["params"])]
    assert aliases == {name: first for first, *others in every for name in others}
    assert distinct == sorted((first for first, *_ in every), key=list(state_dict).index)

    source, seed = config["input"], config["perm_seed"]
    permutations = [fixture.given(f"perm_{i}") for i in range(len(fixture.matching("perm_*")))]
    rng = np.random.RandomState(seed)
    for order in permutations:
        np.testing.assert_array_equal(order, rng.permutation(len(order)))
    assert len(permutations) == len(model.permuted())
    return model, variables, image(source["batch"], source["size"], source["seed"]), permutations


def forward(fixture: Fixture) -> None:
    """A whole model in evaluation, its size, its name in the zoo; bfloat16 beside float32."""
    model, variables, images, permutations = opened(fixture)
    config = fixture.config
    assert [site for site, _ in model.permuted()] == config["perm_sites"].plain()
    assert sum(model.macs().values()) == config["macs"]
    assert parameters(variables["params"]) == config["num_params"]
    assert len(interop.to_torch(model, variables)) == config["num_state_dict_entries"]
    assert len(jax.tree.leaves(variables["params"])) == config["num_unique_parameters"]
    if constructor := config["official_constructor"]:
        assert like(zoo.create_model(constructor.lower()), model, "image_size") == model

    model = model.clone(scan=True)      # compiles one block of each stage
    apply = jax.jit(partial(model.apply, method="features"))
    out = apply(variables, images, permutations=permutations)
    fixture.expect("logits", out["logits"], atol=ATOL)
    fixture.expect("features", out["pooled"], atol=ATOL)
    if "logits_identity" in fixture:
        orders = [np.arange(len(order), dtype=order.dtype) for order in permutations]
        identity = apply(variables, images, permutations=orders)
        fixture.expect("logits_identity", identity["logits"], atol=ATOL)

    half = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(
        variables, images[:1], permutations=permutations)
    logits = out["logits"][:1]
    error = np.sqrt(np.square(half - logits).mean()) / logits.std()
    assert half.dtype == jnp.float32 and error < 0.05, f"bfloat16: {error:.3f} of the logits' std"


def debug(fixture: Fixture) -> None:
    """The output of every module, in the order of the calls."""
    model, variables, images, permutations = opened(fixture)
    parts = (Attention, blocks.Block, blocks.Nonlinear, blocks.Pool, blocks.Stage, blocks.Stem)
    recorded = list(calls(model))
    assert fixture.config["order"].plain() == [label for label, _, _, _ in recorded]
    kept = lambda module, _: isinstance(module, parts)
    out, state = jax.jit(partial(model.apply, method="features", capture_intermediates=kept))(
        variables, images, permutations=permutations)
    fixture.expect("logits", out["logits"], atol=ATOL)
    found = traverse_util.flatten_dict(state["intermediates"])
    orders = {site: np.argsort(order) for (site, _), order in zip(model.permuted(), permutations)}
    for label, path, call, site in recorded:
        value = np.asarray(found[*path, "__call__"][call] if path else out["embedded"], np.float64)
        rows = value.reshape(len(value), -1, value.shape[-1])
        rows = rows[:, orders[site]] if site in orders else rows
        middle = rows.shape[1] // 2
        fixture.expect(label, rows[0, [0, 1, middle, -1]], atol=ATOL, rtol=RTOL)
        fixture.expect(f"{label}|stat", [value.mean(), value.std(ddof=1)], atol=ATOL,
                       rtol=RTOL)
        if f"{label}|full" in fixture:
            fixture.expect(f"{label}|full", value.transpose(0, 3, 1, 2), atol=ATOL,
                           rtol=RTOL)


def calls(model: SReT) -> Iterator[tuple[str, tuple[str, ...], int, str]]:
    """Every recorded output in the order of the calls: label, the module's path (empty where it is
    no module's), which of its calls, and of an attention its place in the list of passes."""
    yield "patch_embed", ("patch_embed",), 0, ""
    yield "after_pos_embed", (), 0, ""
    for s, groups in enumerate(model.groups):
        loops, stage = len(groups), f"transformers.{s}"
        for r in range(model.recursive_num[s]):
            path = f"transformers_{s}", f"blocks_{2 * r * loops}"
            name = f"{stage}.blocks.{2 * r * loops}"
            for i in range(loops):
                place, call = 2 * (r * loops + i), f"#call{i}" if i else ""
                yield f"{name}.attn{call}", (*path, "attn"), i, f"{stage}.blocks.{place}"
                yield f"{name}{call}", path, i, ""
                yield f"{stage}.blocks.{place + 1}", (path[0], f"blocks_{place + 1}"), 0, ""
        yield stage, (f"transformers_{s}",), 0, ""
        if s + 1 < len(model.groups):
            yield f"pools.{s}", (f"pools_{s}",), 0, ""


def modules(fixture: Fixture) -> None:
    """Single modules at toy widths, in evaluation and in training."""
    config, x = fixture.config["modules"], jnp.asarray(fixture.given("x"))
    noise = np.random.RandomState(fixture.config["seed"]).standard_normal(x.shape)
    np.testing.assert_array_equal(x, noise.astype(np.float32))
    permutation, apart = fixture.given("attn_perm"), x[:1]
    small = float(re.search(r"take ([\d.e-]+) \* x", config["note"])[1]) * x
    for name in config:
        if not re.fullmatch(r"attn\d*", name):
            continue
        toy = config[name]
        attention = Attention(toy["heads"], qkv_bias=toy["qkv_bias"])
        bound = attention.bind(filled(attention, toy, name, apart))
        second = toy["groups2"]
        fixture.expect(f"{name}_first", blocks.sliced(bound, x, toy["groups1"]), atol=ATOL)
        fixture.expect(f"{name}_second", blocks.sliced(
            bound, x, second, permutation if second > 1 else None), atol=ATOL)

    toy = config["nll"]
    nonlinear = blocks.Nonlinear(toy["np_mlp_ratio"], blocks.Drops(), jnp.float32)
    variables = filled(nonlinear, toy, "nll", apart, False)
    fixture.expect("nll_out", nonlinear.apply(variables, x, False), atol=ATOL)
    fixture.expect("nll_small", nonlinear.apply(variables, small, False), atol=ATOL)

    toy = config["block"]
    assert int(toy["dim"] * toy["mlp_ratio"]) == toy["hidden"]
    block, variables = toy_block(toy, "block", apart)
    first, second = toy["groups1"], toy["groups2"]
    apply = lambda x, groups, order: block.apply(variables, x, groups, order, 0.5, False)
    fixture.expect("block_first", apply(x, first, None), atol=ATOL)
    fixture.expect("block_second", apply(x, second, permutation if second > 1 else None), atol=ATOL)
    fixture.expect("block_small_first", apply(small, first, None), atol=ATOL)

    toy, many = config["block_drop"], fixture.given("x4")
    block, variables = toy_block(toy, "block_drop", many[:1])
    masks = [mask.reshape(-1, 1, 1) == 1 for mask in fixture.given("block_drop_masks")]
    with mock.patch("jax.random.bernoulli", side_effect=masks):
        out = block.apply(variables, many, toy["groups1"], None, toy["drop_path"], True,
                          rngs={"dropout": jax.random.key(0)})
    fixture.expect("block_drop_first", out, atol=ATOL)
    stem_and_pool(fixture)


def stem_and_pool(fixture: Fixture) -> None:
    """The convolutions of the file of single modules."""
    config, images, grid = fixture.config["modules"], fixture.given("image"), fixture.given("grid")
    toy = config["stem"]
    assert toy["in_chans"] == images.shape[-1]
    stem = blocks.Stem(toy["channels"], jnp.float32)
    variables = filled(stem, toy, "stem", images[:1], False)
    fixture.expect("stem_eval", stem.apply(variables, images, False), atol=ATOL)
    out, changed = stem.apply(variables, images, True, mutable=["batch_stats"])
    fixture.expect("stem_train", out, atol=ATOL)
    for path, value in traverse_util.flatten_dict(changed["batch_stats"]).items():
        if path[-1] == "num_batches_tracked":
            assert value == 1
        else:
            fixture.expect(f"stem_after|{names.official(path)}", value, atol=1e-6, rtol=1e-6)
    toy = config["pool"]
    assert toy["in_dim"] == grid.shape[-1]
    pool = blocks.Pool(toy["out_dim"], jnp.float32)
    variables = filled(pool, toy, "pool", grid[:1])
    fixture.expect("pool_out", pool.apply(variables, grid), atol=ATOL)


def toy_block(toy, name: str, x: jax.Array) -> tuple[blocks.Block, dict]:
    """A block of the file of single modules, and its weights for inputs such as `x`."""
    block = blocks.Block(toy["heads"], toy["mlp_ratio"], blocks.Drops(), jnp.float32)
    return block, filled(block, toy, name, x, 1, None, 0.0, False)


def filled(module, toy, prefix: str, *inputs) -> dict:
    """A module's variables with the filled weights; its arrays must be those of the file's list."""
    assert toy.get("dim", inputs[0].shape[-1]) == inputs[0].shape[-1]
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs)))
    listed = {name: tuple(shape) for name, shape in toy["params"].plain()}
    values = {}
    for path, leaf in shapes.items():
        name = f"{prefix}.{names.official(path[1:])}"
        values[path] = names.from_official(path, fill(name, listed.pop(name)))
        assert values[path].shape == leaf.shape, name
    assert not listed
    return traverse_util.unflatten_dict(values)


def init(fixture: Fixture) -> None:
    """Initial values: the file's draw and ours, each against the distribution."""
    config = fixture.config
    shapes = dict(zip(config["names"].plain(), map(tuple, config["shapes"].plain()), strict=True))
    side = 8 * shapes["pos_embed"][-1]
    model = zoo.create_model(f"sret_{config['size'].lower()}", image_size=side,
                             num_classes=shapes["head.bias"][0])
    # The generator of this kind compiles in a third of the time.
    drawn = jax.jit(lambda key: model.init(key, jnp.zeros((1, side, side, 3)))["params"])(
        jax.random.key(0, impl="rbg"))
    ours = interop.to_torch(model, {"params": drawn})
    distinct = {model.official_names(path)[0]
                for path in traverse_util.flatten_dict(drawn)}
    assert list(shapes) == [name for name in ours if name in distinct]
    assert all(ours[name].shape == shape for name, shape in shapes.items())
    rows = [distribution(name, shapes) for name in shapes]
    stats, limits = (np.array(column) for column in zip(*rows))
    for name, row, limit in zip(shapes, stats, limits):
        w = ours[name]
        assert (np.abs([w.mean(), w.std(), np.abs(w).max()] - row) <= limit).all(), name
    fixture.expect("stats", stats, atol=limits)


def distribution(name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[list, list]:
    """Mean, deviation and largest magnitude that an array should have, and how far a draw of it
    strays (five deviations of each, a chance below 1e-5 for the largest)."""
    count = np.prod(shapes[name])
    if "coefficient" in name or "norm" in name or "bn" in name:
        one = float(not name.endswith(".bias") or "coefficient" in name)
        return [one, 0.0, one], [0.0, 0.0, 0.0]
    if name == "pos_embed":
        return ([0.0, 0.02, 0.02 * np.sqrt(2 * np.log(count))],
                [0.1 / count ** 0.5, 0.1 / (2 * count) ** 0.5, 0.02])
    bound = np.prod(shapes[name.rpartition(".")[0] + ".weight"][1:]) ** -0.5
    std = bound / 3 ** 0.5
    return [0.0, std, bound], [5 * std / count ** 0.5, 2.3 * std / count ** 0.5, 12 * bound / count]


def variants(fixture: Fixture) -> None:
    """Parameters and multiply-adds of all sizes, slices and resolutions."""
    counts, shapes = [], cache(interop.shapes)
    for row in fixture.config["rows"]:
        model = build(row["kwargs"].plain())
        assert model.image_size == row["image_size"]
        named = zoo.create_model(f"sret_{row['size'].lower()}")
        assert like(named, model, "image_size", "groups") == model
        whole = model.clone(groups=tuple((1,) * len(groups) for groups in model.groups))
        counts.append((parameters(shapes(whole)["params"]), sum(model.macs().values())))
        assert counts[-1] == (row["params"], row["macs"])
    for name, column in zip(("params", "macs"), zip(*counts)):
        fixture.expect(name, column)


def pos_embed_resize(fixture: Fixture) -> None:
    """Position maps on other grids."""
    name, batch, channels = re.fullmatch(r"fill\('(\w+)', \((\d+), (\d+), a, a\)\)",
                                         fixture.config["input"]).groups()
    for old, new in fixture.config["pairs"]:
        table = fill(name, (int(batch), int(channels), old, old)).transpose(0, 2, 3, 1)
        fixture.expect(f"from{old}_to{new}", bicubic(table, new).transpose(0, 3, 1, 2), atol=1e-5)


def kd_loss(fixture: Fixture) -> None:
    """Soft cross-entropy with a teacher, and its gradient."""
    for case in fixture.config["cases"]:
        rng, scale, i = np.random.RandomState(case["seed"]), case["scale"], case["case"]
        shape = case["shape"].plain()
        student, teacher = (np.float32(scale * rng.standard_normal(shape)) for _ in "st")
        loss, gradient = jax.value_and_grad(soft_label_loss)(student, teacher, case["temperature"])
        fixture.expect(f"loss_{i}", loss, rtol=1e-6)
        fixture.expect(f"grad_student_{i}", gradient, atol=5e-7 * np.abs(gradient).max())


CHECKS = {"forward": forward, "debug": debug, "modules": modules, "init": init,
          "variants": variants, "pos_embed_resize": pos_embed_resize, "kd_loss": kd_loss}
LATER = {layout: "the SReT issue" for layout in ("train", "recipe", "soft_labels")}
