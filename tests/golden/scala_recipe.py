"""Scala's golden numbers beside the model: which widths are drawn, learning rates, decay groups."""
import inspect
import random
import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden.reader import Fixture
from vit_efficient.engine import optim
from vit_efficient.papers.scala.widths import draw, drawn
from vit_efficient.seams.phases import Length
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model

# the trainer's, which no argument says
LR_BATCH, HALVED_EPOCHS = 512, 10
ADAMW = {name: parameter.default for name, parameter
         in inspect.signature(optim.make_optimizer).parameters.items()}


def sampling(fixture: Fixture) -> None:
    """Which widths the intermediate nets may have, how often they have them, and the widths that
    seeds of Python's generator draw."""
    steps = int(re.search(r"in (\d+) steps", fixture.config["keys"]["freq3q@ / freq2q@"])[1])
    for key, support in fixture.config["supports"].items():
        smallest, largest, granularity = map(float, key.split(","))
        ratios = create_model("scala", smallest_ratio=smallest, largest_ratio=largest,
                              granularity=granularity).ratios
        upper, lower = ([ratios[i] for i in places] for places in drawn(len(ratios)))
        if error := support.get("official_error"):
            # theirs has no lower net to draw, ours those below the middle
            assert "empty range" in error
            middle = (smallest + largest) / 2
            assert lower == [ratio for ratio in ratios[1:-1] if ratio < middle] and upper
            continue
        assert support["order"] == "each step: l, 3q, 2q, s"
        assert upper == support["3q_support"].plain() and lower == support["2q_support"].plain()
        keys = jax.random.split(jax.random.key(0), 2000)
        draws = jax.vmap(lambda key: {name: chosen for name, (_, chosen)
                                      in draw(key, len(ratios)).items()})(keys)
        for name, places in (("3q", upper), ("2q", lower)):
            share = np.bincount(draws[name], minlength=len(places)) / len(keys)
            # Each a draw of theirs or of ours: five deviations of their difference.
            fixture.expect(f"freq{name}@{key}", share,
                           atol=5 * (1 / len(places) * (1 / steps + 1 / len(keys))) ** 0.5)
            times = steps * np.float64(fixture.values(f"freq{name}@{key}"))
            np.testing.assert_allclose(times, times.round(), atol=1e-4)
            assert times.round().sum() == steps
        for name in fixture.matching(f"draws@{key}@seed*"):
            rng = random.Random(int(name.partition("@seed")[2]))
            rows = [(largest, upper[rng.randrange(len(upper))], lower[rng.randrange(len(lower))],
                     smallest) for _ in range(fixture.shape(name)[0])]
            fixture.expect(name, np.float32(rows))


def arguments(argv: list[str], defaults: dict) -> dict:
    """The official script's arguments: `--key value`, `--key=value`, `--flag` or `--no-flag`
    where the default is true or false."""
    given, words = dict(defaults), iter(argv)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        key, turned_off = name.replace("-", "_"), name.startswith("no-")
        if turned_off and key not in defaults:
            key = key.removeprefix("no_")
        default = defaults[key]
        if isinstance(default, bool):
            given[key] = not turned_off
        else:
            value = value or next(words)
            given[key] = float(value) if isinstance(default, int | float) else value
    return given


def schedule(fixture: Fixture) -> None:
    """Learning rates of every epoch; which parameters decay."""
    defaults = fixture.config["cli_defaults"].plain()
    for name, recipe in fixture.config["recipes"].items():
        given, epochs = arguments(recipe["argv"].plain(), defaults), recipe["epochs"]
        assert given["sched"] == "cosine" and given["epochs"] == epochs
        rates = {key: recipe[key] for key in ("warmup_epochs", "warmup_lr", "min_lr")}
        assert rates == {key: given[key] for key in rates}
        batch = int(given["batch_size"]) * recipe["world_size"]
        lr_batch = None if given["unscale_lr"] else LR_BATCH
        np.testing.assert_allclose(given["lr"] * (batch / lr_batch if lr_batch else 1),
                                   recipe["scaled_lr"], rtol=1e-12)
        # An epoch that a resumed run of theirs begins with is a step of the schedule ahead.
        for key, lag in (("lr", 1), ("lr_resume", 0)):
            rate = optim.learning_rate(
                Length(batch, batch, epochs), lr=given["lr"], lr_batch=lr_batch,
                schedule="official", halved_epochs=HALVED_EPOCHS, lag=lag, **rates)
            fixture.expect(f"{key}@{name}64", jax.vmap(rate)(jnp.arange(epochs)), rtol=2e-6,
                           atol=1e-9)
    for name, groups in fixture.config["optimizer_groups"].items():
        model = create_model(name)
        params = interop.shapes(model)["params"]
        decays = interop.to_torch(model, {"params": jax.tree.map(
            lambda leaf, decays: np.full(leaf.shape, decays, np.float32), params,
            optim.decays(model.no_decay)(params))})
        for group in groups:
            expected = group["weight_decay"] > 0
            assert group["weight_decay"] == expected * defaults["weight_decay"]
            assert group["betas"].plain() == [ADAMW["b1"], ADAMW["b2"]]
            assert group["eps"] == defaults["opt_eps"] == ADAMW["eps"]
            assert sorted(group["params"].plain()) == sorted(
                entry for entry, array in decays.items() if bool(array.flat[0]) == expected)
