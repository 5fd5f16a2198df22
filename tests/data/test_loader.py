"""The loader: the same batches however they are prepared, and an end for every kind of accident."""
import multiprocessing
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from vit_efficient.data import loader
from vit_efficient.data.augment import make_augment
from vit_efficient.data.batches import EvaluationBatches, Share, TrainBatches
from vit_efficient.data.sources import Data, open_data
from vit_efficient.seams.phases import Length, constant

DIGITS = open_data(source="digits", image_size=12)
AUGMENT = make_augment()
PHASES = constant(Length(len(DIGITS.train), 128, 1), None)            # 11 steps


def sharding():
    return NamedSharding(jax.sharding.Mesh(np.array(jax.devices("cpu")[:8]), ("data",)), P("data"))


def batches(source=DIGITS.train, start=0, **options):
    data = Data(source, DIGITS.val, 10, 12)
    return loader.train_batches(data, AUGMENT.train, PHASES, 128, sharding(), 0, start, **options)


def faulty(fault):
    """Digits that call `fault(i)` first; a local class, which worker processes get by value."""
    class Faulty:
        classes, max_bad_records, frames = DIGITS.train.classes, 0, None

        def __len__(self):
            return len(DIGITS.train)

        def __getitem__(self, i):
            fault(i)
            return DIGITS.train[i]

        def __str__(self):
            return "faulty digits"
    return Faulty()


def fails(i):
    if i % 100 == 7:
        raise OSError(f"example {i} is gone")


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test leaves threads of the loader or processes behind."""
    yield
    end = time.monotonic() + 60
    while (left := _left()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def _left():
    # Grain keeps one pool that frees shared memory for the whole process.
    threads = [t.name for t in threading.enumerate() if t.name.startswith(("grain", "batches"))]
    return threads + multiprocessing.active_children()


@pytest.mark.parametrize("options", [
    dict(threads=1), dict(threads=5, prefetch=1), dict(workers=1, threads=2),
    dict(workers=2, threads=1, prefetch=3), dict(workers=3, threads=1)])
def test_batches_do_not_depend_on_who_prepares_them(options):
    expected = TrainBatches(DIGITS.train, AUGMENT.train, PHASES, 128, 12, Share(), 0, 3)
    with batches(start=3, **options) as loaded:
        found = list(loaded)
    assert len(found) == len(expected) == 8
    for step, batch in enumerate(found):
        assert set(batch) == {"image", "label", "weight"}
        for name in batch:
            x = expected[step][name]
            assert batch[name].dtype == x.dtype and batch[name].sharding == sharding()
            np.testing.assert_array_equal(batch[name], x)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_on_eight_devices(workers):
    expected = EvaluationBatches(DIGITS.val, AUGMENT.evaluate, 12, 100, Share(tuple(range(8)), 8))
    with loader.evaluation_batches(DIGITS.val, AUGMENT.evaluate, 12, 100, sharding(),
                                   workers=workers,
                                   threads=2) as loaded:
        found = list(loaded)
    assert len(found) == 4 and found[0]["image"].shape == (104, 12, 12, 3)
    assert sum(float(batch["weight"].sum()) for batch in found) == len(DIGITS.val)
    for step, batch in enumerate(found):
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected[step][name])


def test_nothing_left_to_do():
    with batches(start=PHASES.total) as loaded:
        assert list(loaded) == []
        assert list(loaded) == []


@pytest.mark.parametrize("options", [dict(), dict(workers=2, threads=1)])
def test_an_error_of_the_source_reaches_the_consumer(options):
    loaded = batches(faulty(fails), **options)
    for _ in range(2):                                               # asked again, it says so again
        with pytest.raises(OSError, match="example .*7 is gone"):
            list(loaded)


def test_a_source_that_exits_does_not_hang_the_consumer():
    with pytest.raises(SystemExit):
        list(batches(faulty(lambda i: sys.exit("stop"))))


def test_a_killed_worker_is_an_error():
    loaded = batches(faulty(lambda i: time.sleep(0.005)), workers=1, threads=1)
    next(loaded)
    worker, = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)  # the trainer's to answer: ignored
    next(loaded)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="terminated unexpectedly with exit code -9"):
        list(loaded)


@pytest.mark.parametrize("options", [dict(), dict(prefetch=1), dict(workers=2, threads=1)])
def test_closing_early(options):
    loaded = batches(**options)
    next(loaded)
    loaded.close()
    loaded.close()
    assert not loaded._thread.is_alive()
    with pytest.raises(StopIteration):
        next(loaded)


def test_a_forgotten_loader_stops():
    loaded = batches()
    next(loaded)
    del loaded  # the fixture waits for its threads


TRAINER = """
import multiprocessing, time
from vit_efficient.data import loader
from vit_efficient.data.sources import open_data
from vit_efficient.data.augment import make_augment
from vit_efficient.seams.phases import Length, constant
import jax
if __name__ == "__main__":
    data = open_data(source="digits", image_size=12)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    phases = constant(Length(1438, 16, 99), None)
    loaded = loader.train_batches(data, make_augment().train, phases, 16, sharding, 0, 0, workers=2,
                                  threads=1)
    next(loaded), next(loaded)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks up processes in /proc")
def test_workers_end_with_a_killed_trainer(tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    root = str(Path(loader.__file__).parents[2])
    trainer = subprocess.Popen([sys.executable, tmp_path / "trainer.py"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONPATH": root})
    workers = [Path("/proc") / pid for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2 and all(worker.exists() for worker in workers)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()

    def alive(worker):  # an orphan that nobody reaps stays as a zombie
        try:
            return (worker / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False
    end = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_waiting_is_measured_and_reported(monkeypatch):
    warnings = []
    monkeypatch.setattr(loader, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(loader.log, "warning",
                        lambda text, *values: warnings.append(text % values))
    with batches(faulty(lambda i: time.sleep(0.005)), threads=1) as slow:
        next(slow)                                                   # 128 examples: 0.64 seconds
        assert 0.6 < slow.waited < 3
        assert len(warnings) == 1
        assert "faulty digits" in warnings[0] and "0.2 seconds" in warnings[0]
    with batches(threads=1) as fast:
        time.sleep(1)
        fast.waited = 0.0
        next(fast), next(fast)
        assert fast.waited < 0.1 and len(warnings) == 1


def test_batches_lie_ready():
    # The consumer needs longer than the source: after the first batch nothing is waited for.
    prepared = []
    with batches(faulty(prepared.append), threads=1, prefetch=2) as loaded:
        next(loaded)
        time.sleep(1)
        # One taken, two ready, one in the hand of the copying thread, one or two in preparation.
        assert 4 * 128 <= len(prepared) <= 6 * 128
