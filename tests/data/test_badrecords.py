"""Bad records: what stands in for them is the same everywhere, and there is a budget."""
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from tests import runs
from tests.data.spoilt import IMAGES, Spoilt, evaluation, train
from vit_efficient.data import loader
from vit_efficient.data.badrecords import substitutes
from vit_efficient.data.batches import Share


def everything(batches, **options):
    """The batches of a run of this process alone; `options` of the loader."""
    places = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    options = dict(workers=0, threads=2, prefetch=1) | options
    with loader.Batches(batches, places, **options) as loaded:
        return list(loaded)


def test_substitutes_go_round_the_source():
    assert list(substitutes(3, 5)) == [3, 4, 0, 1, 2]


def test_the_next_good_example_stands_in_with_its_label():
    whole, spoilt = train(Spoilt((), 0)), train(Spoilt((5, 6, 39), 3))
    stands_in = np.arange(40)
    stands_in[[5, 6, 39]] = 7, 7, 0
    for step in range(15):
        expected = stands_in[whole[step]["label"]]
        batch = spoilt[step]
        np.testing.assert_array_equal(batch["label"], expected)
        np.testing.assert_array_equal(batch["image"], IMAGES[expected])
        assert batch["weight"].all()


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_agree_whatever_they_have_met_before(count):
    source = (5, 6, 39)
    whole = train(Spoilt(source, 3))
    for step in (11, 2, 14, 0):                       # each host has its own history of bad records
        parts = [train(Spoilt(source, 3), Share((i,), count))[step] for i in range(count)]
        for name in ("image", "label", "weight"):
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[step][name])


@pytest.mark.parametrize("options", [{}, {"workers": 2, "threads": 1}])
def test_the_budget_counts_distinct_records(caplog, options):
    everything(train(Spoilt((5, 6), 2)), **options)   # three passes meet each of them three times
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(text.partition(":")[0] for text in messages if "bad record" in text) == [
        "example 5", "example 6"]
    with pytest.raises(ValueError, match="example [56]: no readable image; data.max_bad_records = "
                                         "1: repair or remove"):
        everything(train(Spoilt((5, 6), 1)))


def test_by_default_none_is_allowed():
    with pytest.raises(ValueError, match="data.max_bad_records = 0"):
        everything(train(Spoilt((5,), 0)))


TOGETHER = """
    import sys, jax
    from jax.sharding import NamedSharding, PartitionSpec
    from tests.data.spoilt import Spoilt, evaluation, train
    from vit_efficient.engine import distributed
    from vit_efficient.data.batches import share_of
    from vit_efficient.data.loader import Batches
    distributed.start(sys.argv[1], 2, int(sys.argv[2]))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    places = NamedSharding(mesh, PartitionSpec("data"))
    for make in evaluation, train:
        for allowed in 3, 2:                      # in training both meet all three, in the end
            try:
                batches = make(Spoilt((1, 30, 31), allowed), share_of(places))
                with Batches(batches, places, 0, 1, 1) as loaded:
                    print(sum(1 for _ in loaded), "batches", flush=True)
            except ValueError as error:
                print(error, flush=True)
            if make is train:
                break
"""


def test_processes_have_one_budget():
    address = f"127.0.0.1:{runs.free_port()}"
    command = [sys.executable, "-c", textwrap.dedent(TOGETHER), address]
    processes = [subprocess.Popen([*command, str(i)], cwd=runs.ROOT, env=runs.environment(),
                                  text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for i in range(2)]
    for process in processes:
        out, log = process.communicate(timeout=120)
        assert out.splitlines()[-3:] == [          # before them a line of Gloo's
            "3 batches",
            "spoilt: the processes together met 3 bad records, examples 1, 30, 31; "
            "data.max_bad_records = 2: repair or remove what cannot be read, or allow more",
            "15 batches"], log


def test_a_source_without_a_good_record_is_an_error():
    with pytest.raises(ValueError, match="spoilt: holds no good record"):
        train(Spoilt(range(40), 40))[0]


def test_evaluation_leaves_bad_records_out():
    batches = evaluation(Spoilt((5, 39), 2))
    weight = np.concatenate([batches[i]["weight"] for i in range(3)])
    image = np.concatenate([batches[i]["image"] for i in range(3)])
    good = ~np.isin(np.arange(48), [5, 39, *range(40, 48)])
    np.testing.assert_array_equal(weight, good)
    np.testing.assert_array_equal(image[good], IMAGES[good[:40]])
    assert not image[~good].any()
    with pytest.raises(ValueError, match="data.max_bad_records = 1"):
        everything(evaluation(Spoilt((5, 39), 1)))
