"""The order and the arithmetic of a training step, with a small model and every seam in use."""
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_efficient.engine import optim, sharding, state as states, step as steps
from vit_efficient.seams import objective as objectives
from vit_efficient.seams.phases import Length, Phase
from vit_efficient.seams.sparsity import Sparsity, dense

B, S, K = 16, 8, 4
DENSE = dense(None, None)


class Net(nn.Module):
    """A convolution, a batch statistic, dropout and a classifier."""
    rate: float = 0.0
    statistic: bool = True

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(96, (2, 2), strides=2, name="conv")(images)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (96,))
        if train and self.statistic:
            mean.value = 0.9 * mean.value + 0.1 * x.mean((0, 1, 2))
        x = nn.Dropout(self.rate, deterministic=not train)(nn.gelu(x - mean.value))
        return nn.Dense(K, name="head")(x.mean((1, 2)))


def batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    label = rng.integers(0, K, B).astype(np.int32)
    image = rng.normal(size=(B, S, S, 3)) + label[:, None, None, None]
    return {"image": image.astype(np.float32), "label": label, "weight": np.ones(B, np.float32)}


def prepare(mesh=None, sparsity=DENSE, phase=Phase(), rate=0.0, statistic=True, **options):
    """A state on `mesh` and its jitted step."""
    mesh = mesh or jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1],
                                 axis_types=sharding.make_mesh().axis_types)
    model = Net(rate, statistic)
    optimizer = optim.make_optimizer(Length(B * 100, B, 1), (), lr=3e-2, clip_norm=1.0)
    objective = objectives.supervised(objectives.Forward(model, phase, {}), phase, None)
    step = steps.make_step(objective, optimizer, sparsity, phase, lambda b, key: b, **options)

    def create():
        variables = model.init(jax.random.key(0), jnp.zeros((1, S, S, 3)), train=False)
        return states.create(3, variables, optimizer, sparsity, options.get("ema_decay", 0) > 0)

    places = sharding.state_sharding(mesh, jax.eval_shape(create))
    jitted = jax.jit(step, donate_argnames="state",
                     out_shardings=(places, sharding.replicated(mesh)))
    put = lambda b: jax.device_put(b, sharding.batch_sharding(mesh))
    return jax.jit(create, out_shardings=places)(), lambda state, b: jitted(state, {}, put(b))


def assert_close(tree, expected, rtol=1e-3, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), tree, expected)


def go(state, step, count=3):
    losses = []
    for i in range(count):
        state, out = step(state, batch(i))
        losses.append(float(out["metrics"]["loss"][0]))
    return state, losses


@pytest.mark.parametrize("data, fsdp", [(8, 1), (1, 8), (4, 2)])
def test_one_and_eight_devices_agree(data, fsdp):
    options = dict(rate=0.2, ema_decay=0.9, accumulate=2)
    one, expected = go(*prepare(**options))
    many, got = go(*prepare(sharding.make_mesh(data=data, fsdp=fsdp), **options))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert_close(many.params, one.params)


def test_the_sequence_of_a_step_written_out():
    """Objective, clipped AdamW at the rate of this step, EMA of weights and statistics."""
    state, step = prepare(ema_decay=0.9)
    start = jax.device_get(state)
    after, out = step(state, batch(0))
    model, given = Net(), batch(0)

    def loss(params):
        logits, changed = model.apply({"params": params, **start.collections}, given["image"],
                                      train=True, mutable=["batch_stats"],
                                      rngs={"dropout": jax.random.key(0)})
        each = optax.softmax_cross_entropy_with_integer_labels(logits, given["label"])
        return each.mean(), changed

    (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(start.params)
    norm = optax.tree.norm(grads)
    reference = optax.chain(optax.clip_by_global_norm(1.0),
                            optax.adamw(3e-2, weight_decay=0.05, mask=optim.decays(())))
    updates, _ = reference.update(grads, reference.init(start.params), start.params)
    params = optax.apply_updates(start.params, updates)
    before = {"params": start.params, "collections": start.collections}
    weights = {"params": params, "collections": dict(changed)}
    close = partial(assert_close, rtol=1e-4, atol=1e-6)
    close(out["metrics"]["loss"][0], value)
    close(out["metrics"]["grad_norm"][0], norm)
    close({"params": after.params, "collections": after.collections}, weights)
    close(after.ema, jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, before, weights))


def test_accumulated_gradients_are_those_of_the_batch():
    """Without batch statistics, which see each part alone, the parts add up to the batch."""
    whole, losses = go(*prepare(statistic=False))
    parts, again = go(*prepare(statistic=False, accumulate=4))
    np.testing.assert_allclose(again, losses, rtol=2e-5)
    assert_close(parts.params, whole.params)


def test_a_step_that_is_not_finite_leaves_only_its_count():
    state, step = prepare(ema_decay=0.5)
    state, _ = step(state, batch(0))
    before = jax.device_get(state)
    broken = batch(1)
    broken["image"][3, 0, 0, 0] = np.inf
    for row in 1, 2:
        state, out = step(state, broken)
        assert (int(out["skipped"]), int(out["streak"])) == (row, row)
    after = jax.device_get(state)
    assert int(after.step) == 3 and int(after.skipped) == 2
    for name in "params", "collections", "opt_state", "ema", "masks", "seed":
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    state, out = step(state, batch(2))
    assert (int(out["skipped"]), int(out["streak"])) == (2, 0)
    changed = jax.tree.map(lambda a, b: np.any(a != b), state.params, before.params)
    assert any(jax.tree.leaves(changed))


def test_randomness_follows_the_step_number_alone():
    """A copy of a state goes on with the same bits; another step number drops other units."""
    state, step = prepare(rate=0.5)
    for i in range(2):
        state, _ = step(state, batch(i))
    kept = jax.tree.map(jnp.copy, state)
    first, second = step(state, batch(2)), step(kept, batch(2))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))
    state, step = prepare(rate=0.5)
    frozen = jax.tree.map(jnp.copy, state)
    _, one = step(state, batch(0))
    _, two = step(frozen.replace(step=jnp.int32(1)), batch(0))
    assert float(one["metrics"]["loss"][0]) != float(two["metrics"]["loss"][0])


def test_masks_hold_and_a_topology_step_moves_them():
    """Half of the classifier is masked; a step of a topology phase exchanges the halves."""
    def init(params, key):
        return {"head": {"kernel": jnp.arange(96 * K).reshape(96, K) % 2 == 0}}

    def apply(params, masks):
        kernel = jnp.where(masks["head"]["kernel"], params["head"]["kernel"], 0)
        return params | {"head": params["head"] | {"kernel": kernel}}

    def update(params, masks, grads, signals, step, key):
        return params, {"head": {"kernel": ~masks["head"]["kernel"]}}, {}

    sparsity = Sparsity(init, apply, update)
    state, step = prepare(sparsity=sparsity)
    mask = np.asarray(state.masks["head"]["kernel"])
    state, _ = go(state, step)
    kernel = np.asarray(state.params["head"]["kernel"])
    assert not kernel[~mask].any() and kernel[mask].all()
    _, move = prepare(sparsity=sparsity, phase=Phase(topology=True))
    state, _ = move(state, batch(9))
    np.testing.assert_array_equal(state.masks["head"]["kernel"], ~mask)
    assert not np.asarray(state.params["head"]["kernel"]).any()


def test_fsdp_splits_almost_every_byte():
    mesh = sharding.make_mesh(fsdp=8)
    tree = {"qkv": jnp.zeros((384, 1152)), "fc1": jnp.zeros((384, 1536)),
            "norm": jnp.zeros(384), "odd": jnp.zeros((7, 9))}
    placed = jax.device_put(tree, sharding.state_sharding(mesh, tree))
    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(placed))
    assert local < whole * (0.1 + 0.9 / 8)
