"""Batches against slow loops over order and host transforms, on one process and on several."""
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from tests.data.noise import AUGMENT, PHASES, SOURCE
from vit_efficient.data import order
from vit_efficient.data.batches import EvaluationBatches, Share, TrainBatches, share_of
from vit_efficient.data.sources import Arrays
from vit_efficient.seams.phases import Length, Phase, Phases, Position, constant


def train(phases=PHASES, batch_size=8, share=Share(), seed=3, start=0, source=SOURCE):
    return TrainBatches(source, AUGMENT.train, phases, batch_size, 12, share, seed, start)


def evaluation(batch_size, share=Share(), count=41):
    source = Arrays(SOURCE.images[:count], SOURCE.labels[:count], SOURCE.classes)
    return EvaluationBatches(source, AUGMENT.evaluate, 12, batch_size, share)


def test_training_batches_follow_the_order():
    batches = train()
    assert len(batches) == 15
    for step in (0, 4, 5, 14):
        batch, (epoch, inside) = batches[step], divmod(step, 5)
        for row in range(8):
            example = int(order.shuffled(np.array(inside * 8 + row), 41, 3, epoch))
            rng = order.generator(3, epoch, example, 0)
            expected = AUGMENT.train(SOURCE.images[example], 12, rng)
            np.testing.assert_array_equal(batch["image"][row], expected)
            assert batch["label"][row] == SOURCE.labels[example] and batch["weight"][row] == 1
    dtypes = {"image": np.uint8, "label": np.int32, "weight": np.float32}
    assert batch.pop("bad") == {} and {name: x.dtype for name, x in batch.items()} == dtypes


def test_start_leaves_out_steps_and_nothing_else():
    np.testing.assert_array_equal(train(start=7)[2]["image"], train()[9]["image"])
    assert len(train(start=7)) == 8 and len(train(start=15)) == 0 and len(train(start=16)) == 0


def test_a_phase_sets_resolution_and_crops():
    phases = Phases(4, lambda step: Phase(data=(("image_size", 10),)) if step == 1 else Phase(),
                    lambda step: Position(0, 6, 4) if step == 1 else Position(0, 0))
    assert train(phases)[0]["image"].shape == (8, 12, 12, 3)
    batch = train(phases, batch_size=6)[1]
    assert batch["image"].shape == (8, 10, 10, 3)  # two examples, four crops of each
    a, b = order.shuffled(np.array([6, 7]), 41, 3, 0).tolist()
    assert batch["label"].tolist() == [SOURCE.labels[a], SOURCE.labels[b]] * 4
    for row, (example, copy) in enumerate((x, copy) for copy in range(4) for x in (a, b)):
        expected = AUGMENT.train(SOURCE.images[example], 10, order.generator(3, 0, example, copy))
        np.testing.assert_array_equal(batch["image"][row], expected)
    assert len(np.unique(batch["image"][::2], axis=0)) == 4


def test_repeated_examples_differ_in_their_augmentation():
    batch = train(constant(Length(41, 6, 3, repeats=3), None), batch_size=6)[1]
    a, b = order.shuffled(np.array([2, 3]), 41, 3, 0).tolist()
    for row, (example, copy) in enumerate((x, copy) for x in (a, b) for copy in range(3)):
        expected = AUGMENT.train(SOURCE.images[example], 12, order.generator(3, 0, example, copy))
        np.testing.assert_array_equal(batch["image"][row], expected)
        assert batch["label"][row] == SOURCE.labels[example]
    assert len(np.unique(batch["image"], axis=0)) == 6


@pytest.mark.parametrize("make,steps", [
    (train, 3), (lambda share=Share(): evaluation(10, share), 5)])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_hold_the_batch_of_one(make, steps, processes):
    shares = [Share((p,), processes) for p in range(processes)]
    for step in range(steps):
        whole, parts = make()[step], [make(share=share)[step] for share in shares]
        assert whole.pop("bad") == {}
        for name, expected in whole.items():
            rows = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(rows[:len(expected)], expected)
            assert not rows[len(expected):].any()  # 10 images in 4 parts: 2 rows of padding


@pytest.mark.parametrize("batch_size", [1, 7, 40, 41, 42, 100])
@pytest.mark.parametrize("count", [40, 41])
def test_evaluation_has_every_example_once(batch_size, count):
    batches = evaluation(batch_size, count=count)
    steps = [batches[i] for i in range(len(batches))]
    assert all(len(step["image"]) == batch_size for step in steps)
    image, label, weight = (np.concatenate([step[name] for step in steps])
                            for name in ("image", "label", "weight"))
    expected = np.stack([AUGMENT.evaluate(x, 12) for x in SOURCE.images[:count]])
    np.testing.assert_array_equal(image[weight == 1], expected)
    np.testing.assert_array_equal(label[weight == 1], SOURCE.labels[:count])
    assert weight.sum() == count and not image[weight == 0].any()
    assert len(steps) == -(-count // batch_size)


def test_sizes_that_the_mesh_cannot_cut():
    with pytest.raises(ValueError, match="batch_size = 8: must be a multiple of 3"):
        train(share=Share((0,), 3))
    phases = Phases(1, lambda step: Phase(), lambda step: Position(0, 0, 3))
    message = "batch_size = 8: 3 crops .* steps of 9, which must be a multiple of 4"
    with pytest.raises(ValueError, match=message):
        train(phases, share=Share((0,), 4))[0]


class Process:
    """A sharding as the process sees it that owns some of the devices."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices, self.device_set = sharding, devices, sharding.device_set

    def shard_shape(self, shape):
        return self.sharding.shard_shape(shape)

    def addressable_devices_indices_map(self, shape):
        every = self.sharding.devices_indices_map(shape)
        return {device: every[device] for device in self.devices}


def test_a_process_loads_the_rows_of_its_devices():
    devices = np.array(jax.devices("cpu")[:8])
    def share(order, spec, mine):
        mesh = jax.sharding.Mesh(devices[order].reshape(4, 2), ("data", "fsdp"))
        return share_of(Process(NamedSharding(mesh, spec), set(devices[mine])))
    plain, wired = list(range(8)), [0, 1, 4, 5, 2, 3, 6, 7]
    both = P(("data", "fsdp"))
    assert share(plain, both, range(4)) == ((0, 1, 2, 3), 8)
    assert share(plain, both, range(4, 8)) == ((4, 5, 6, 7), 8)
    assert share(wired, both, range(4)) == ((0, 1, 4, 5), 8)  # not neighbours in the global batch
    assert share(plain, P("data"), range(4)) == ((0, 1), 4)  # copies on the other axis: loaded once
    assert share(plain, P(), range(4)) == ((0,), 1)
    assert Share((0, 1, 4, 5), 8).rows(16).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
