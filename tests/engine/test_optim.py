"""The learning rates of the five papers' trainers, and AdamW against its textbook form."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.engine import optim
from vit_efficient.seams.phases import Length

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays), json.loads(str(arrays["config"]))


def rates(epochs: int, steps_per_epoch: int = 3, **options) -> np.ndarray:
    """The rate of every epoch, which must be one within it."""
    length = Length(steps_per_epoch * 512, 512, epochs)
    rate = optim.learning_rate(length, schedule="official", **options)
    each = np.asarray(jax.vmap(rate)(jnp.arange(length.total))).reshape(-1, steps_per_epoch)
    assert (each == each[:, :1]).all()
    return each[:, 0]


@pytest.mark.parametrize("batch", [512, 1024])
def test_svite_rates_lag_one_epoch(batch):
    arrays, _ = load("svite/schedule")
    got = rates(600, lr=5e-4 * batch / 512, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    np.testing.assert_allclose(got, arrays[f"lr_epoch_bs{batch}"], rtol=2e-5)


@pytest.mark.parametrize("name", ["deit_default", "readme_note"])
def test_sret_rates(name):
    arrays, config = load("sret/recipe")
    recipe = config[f"lr|{name}"]
    got = rates(recipe["epochs"], lr=recipe["lr"], warmup_epochs=recipe["warmup"],
                warmup_lr=recipe["warmup_lr"], min_lr=recipe["min_lr"])
    np.testing.assert_allclose(got, arrays[f"lr|{name}"], rtol=2e-5)


@pytest.mark.parametrize("name", ["t2t_vit_12", "t2t_vit_14", "deit_small", "short"])
def test_dvt_rates_cool_down_and_do_not_lag(name):
    arrays, config = load("dvt/schedule")
    case = config["cases"][name]
    same = {key: case[key] for key in
            ("lr", "warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs")}
    got = rates(case["epochs"] + case["cooldown_epochs"], lag=0, **same)
    np.testing.assert_allclose(got, arrays[name], rtol=2e-5)


@pytest.mark.parametrize("name", ["S100", "B300", "defaults_1gpu"])
def test_scala_halves_the_first_ten_epochs(name):
    arrays, config = load("scala/schedule")
    recipe = config["recipes"][name]
    same = {key: recipe[key] for key in ("warmup_epochs", "warmup_lr", "min_lr")}
    got = rates(recipe["epochs"], lr=recipe["scaled_lr"], halved_epochs=10, **same)
    np.testing.assert_allclose(got, arrays[f"lr@{name}64"], rtol=2e-5)


def test_asvit_rate_of_every_step():
    _, config = load("asvit/schedule")
    length = Length(config["steps_per_epoch"] * 1024, 1024, config["epochs"])
    rate = optim.learning_rate(length, lr=config["peak_lr"] / 2, lr_batch=512,
                               warmup_epochs=config["warmup_epochs"])
    got = [float(rate(step)) for step in config["steps"]]
    np.testing.assert_allclose(got, config["lr"], rtol=1e-5, atol=1e-9)


def test_without_warmup_the_first_rate_is_the_peak():
    assert rates(4, lr=0.5, warmup_epochs=0, min_lr=0.1, warmup_lr=0.2)[0] == 0.5


@pytest.mark.parametrize("options, words", [
    (dict(warmup_epochs=4.0), "optim.warmup_epochs = 4"),
    (dict(schedule="official", cooldown_epochs=3, warmup_epochs=1.0), "the 1 epochs of the cosine"),
    (dict(lag=0), "optim.schedule")])
def test_rates_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        optim.learning_rate(Length(10, 1, 4), lr=1.0, **options)


def test_adamw_is_the_textbook_form():
    """Three steps of decoupled decay, bias correction and clipping, written out in float64."""
    length = Length(6, 1, 1)
    options = dict(lr=0.1, weight_decay=0.3, b1=0.8, b2=0.95, eps=1e-3, clip_norm=1.5)
    optimizer = optim.make_optimizer(length, ("pos_embed",), **options)
    rng = np.random.default_rng(0)
    params = {"fc": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)},
              "pos_embed": rng.normal(size=(1, 4, 2))}
    flat, tree = jax.tree.flatten(params)
    decay = jax.tree.leaves({"fc": {"kernel": 0.3, "bias": 0.0}, "pos_embed": 0.0})
    m, v = [[np.zeros_like(w) for w in flat] for _ in "mv"]
    state = optimizer.init(jax.tree.map(jnp.float32, params))
    got = jax.tree.map(jnp.float32, params)
    for step in range(3):
        grads = [rng.normal(size=w.shape) for w in flat]
        given = jax.tree.map(jnp.float32, jax.tree.unflatten(tree, grads))
        got, state = optim.apply(optimizer, given, state, got, step)
        norm = np.sqrt(sum((g ** 2).sum() for g in grads))
        lr = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 6))
        for i, g in enumerate(grads):
            g = g * min(1, 1.5 / norm)
            m[i], v[i] = 0.8 * m[i] + 0.2 * g, 0.95 * v[i] + 0.05 * g ** 2
            mean, square = m[i] / (1 - 0.8 ** (step + 1)), v[i] / (1 - 0.95 ** (step + 1))
            flat[i] = flat[i] * (1 - lr * decay[i]) - lr * mean / (np.sqrt(square) + 1e-3)
    for a, b in zip(jax.tree.leaves(got), flat):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_decay_groups_are_scalas():
    """A distilled DeiT's official groups: matrices decay; norms, biases, tokens do not."""
    _, config = load("scala/schedule")
    shapes = {"kernel": (2, 2), "scale": (2,), "bias": (2,),
              "cls_token": (1, 1, 2), "pos_embed": (1, 4, 2)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    mask = optim.decays(("cls_token", "dist_token", "pos_embed"))(params)
    assert mask == {name: name == "kernel" for name in shapes}
    for groups in config["optimizer_groups"].values():
        plain = next(g for g in groups if g["weight_decay"] == 0)["params"]
        decayed = next(g for g in groups if g["weight_decay"] > 0)["params"]
        assert all(name.endswith(".weight") for name in decayed)
        assert "pos_embed" in plain and "cls_token" in plain


def test_only_what_is_trained_moves():
    """The rest keeps its bits, decays no more, and its gradients count in no norm."""
    kernel = {"kernel": jnp.ones((2, 2))}
    params = {"blocks_0": {"attn": kernel, "mlp": kernel}, "head": {"bias": jnp.ones(2)}}
    length = Length(10, 10, 10)
    options = dict(lr=0.1, clip_norm=1.0, weight_decay=0.5)
    some = optim.make_optimizer(length, (), **options, trained=("*/attn/*", "head/*"))
    grads = jax.tree.map(jnp.ones_like, params)
    after, _ = optim.apply(some, grads, some.init(params), params, 3)
    np.testing.assert_array_equal(after["blocks_0"]["mlp"]["kernel"], 1)
    fewer = {"blocks_0": {"attn": kernel}, "head": params["head"]}
    alone, ones = optim.make_optimizer(length, (), **options), jax.tree.map(jnp.ones_like, fewer)
    expected, _ = optim.apply(alone, ones, alone.init(fewer), fewer, 3)
    for part in (("blocks_0", "attn", "kernel"), ("head", "bias")):
        mine, theirs = after, expected
        for key in part:
            mine, theirs = mine[key], theirs[key]
        np.testing.assert_array_equal(mine, theirs)
        assert not np.any(mine == 1)


def test_a_pattern_without_a_parameter_is_refused():
    made = optim.make_optimizer(Length(10, 10, 10), (), lr=0.1, trained=("*.attn.*",))
    with pytest.raises(ValueError, match=r"optim.trained: no parameter matches \*.attn.\*"):
        made.init({"head": {"bias": jnp.ones(2)}})


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_sgd_is_torchs(decay):
    """`d = g + wd w`, `buf = momentum buf + d`, `w -= lr buf`, written out in float64; a slower
    part's peak is a share of the others', its floor is theirs."""
    length = Length(4, 1, 4)
    optimizer = optim.make_optimizer(
        length, ("pos_embed",), lr=0.1, min_lr=0.01, schedule="official", lag=0, weight_decay=0.3,
        method="sgd", momentum=0.7, decay=decay, slower=(("head/*", 0.5), ("*/bias", 0.0625)))
    rng = np.random.default_rng(0)
    params = {"fc": {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)},
              "head": {"bias": rng.normal(size=2)}, "pos_embed": rng.normal(size=(1, 4, 2))}
    everywhere = 0.3 * (decay == "all")
    wd = jax.tree.leaves({"fc": {"kernel": 0.3, "bias": everywhere}, "head": {"bias": everywhere},
                          "pos_embed": 0.0})
    peak = jax.tree.leaves({"fc": {"kernel": 0.1, "bias": 0.00625}, "head": {"bias": 0.05},
                            "pos_embed": 0.1})
    flat, tree = jax.tree.flatten(params)
    buffers = [np.zeros_like(w) for w in flat]
    got = jax.tree.map(jnp.float32, params)
    state = optimizer.init(got)
    for step in range(10):
        grads = [rng.normal(size=w.shape) for w in flat]
        given = jax.tree.map(jnp.float32, jax.tree.unflatten(tree, grads))
        got, state = optim.apply(optimizer, given, state, got, step)
        for i, g in enumerate(grads):
            buffers[i] = 0.7 * buffers[i] + g + wd[i] * flat[i]
            rate = 0.01 + (peak[i] - 0.01) * (1 + np.cos(np.pi * (step // 4) / 4)) / 2
            flat[i] = flat[i] - rate * buffers[i]
    for a, b in zip(jax.tree.leaves(got), flat):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_what_decays_may_be_said_anew():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "cls_token": jnp.ones((1, 1, 2))}
    mask = lambda *options: optim.decays(*options)(params)
    assert mask(("cls_token",)) == {"kernel": True, "bias": False, "cls_token": False}
    assert mask((), "all") == dict.fromkeys(params, True)
    made = optim.make_optimizer(Length(10, 10, 10), ("cls_token",), lr=0.1, weight_decay=0.5,
                                no_decay=())
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, _ = optim.apply(made, zeros, made.init(params), params, 0)
    assert [bool((moved[name] < 1).all()) for name in ("kernel", "bias", "cls_token")] == [
        True, False, True]


@pytest.mark.parametrize("options, words", [
    (dict(momentum=0.5), "optim.momentum = 0.5: optim.method = adamw does not read it"),
    (dict(slower=(("*/heads/*", 0.1),)), r"optim.slower: no parameter matches \*/heads/\*")])
def test_what_an_optimizer_does_not_read_is_refused(options, words):
    params = {"head": {"bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=words):
        made = optim.make_optimizer(Length(10, 10, 10), (), lr=0.1, **options)
        optim.apply(made, params, made.init(params), params, 0)
