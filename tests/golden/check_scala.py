"""Scala's golden numbers: the sliced model at every width, what stands inside it, its exported
slices."""
import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.fill import fill, image
from tests.golden.reader import Fixture
from vit_efficient import interop
from vit_efficient.layers.position import resize_bicubic
from vit_efficient.scala.models import Scala, standalone
from vit_efficient.zoo import create_model

# of logits and of what stands inside: ours are 3e-6 off
ATOL = 2e-5
# arguments of the official constructors that have another name here
NAMES = {"img_size": "image_size", "embed_dim": "width", "drop_path_rate": "drop_path"}
TRAINING = ("drop_rate", "attn_drop_rate")      # nothing in evaluation, 0 in every recipe
CLASSES = {"vit": False, "distilled_vit": True}


def load(fixture: Fixture) -> tuple[Scala, dict]:
    """The model that the file describes and its variables, both ways through the state_dict."""
    config, options = fixture.config, {}
    kwargs = config["kwargs"].plain()
    name = config["variant"]
    if name in CLASSES:         # the bare class, with timm's defaults
        kwargs = {"embed_dim": 768, "num_heads": 12} | kwargs
        name, options = "scala", {"distilled": CLASSES[name]}
    options |= {NAMES.get(key, key): value for key, value in kwargs.items()
                if key not in TRAINING}
    model = create_model(name, granularity=None, scan=True, **options)
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
    def run(params, x):
        return net.apply({"params": params}, x, method="features", capture_intermediates=True,
                         mutable=["intermediates"])

    features, captured = run(model.sliced(variables["params"], ratio), x)
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
        net, weights = standalone(model, variables, ratio)
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


CHECKS = {"forward": forward, "export": export, "pos_embed_resize": pos_embed_resize}
LATER = {layout: "the Scala issue" for layout in
         ("evaluate", "sampling", "schedule", "train_step", "train_steps", "train_modes")}
