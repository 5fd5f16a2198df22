"""The plan: its floors in closed form, the largest batch, its errors, a real pod."""
import importlib.util
import json

import jax
import pytest

from tests.data.formats.sets import SETS
from tests.runs import small_config
from vit_efficient.data.sources import open_data
from vit_efficient.engine.assemble import assemble
from vit_efficient.engine.sharding import make_mesh
from vit_efficient.jobs.plan import (
    KNOWN,
    _mesh,
    batch_unit,
    draw,
    floors,
    largest_batch,
    plan,
    table,
)
from vit_efficient.measure.chips import CHIPS, chip_of
from vit_efficient.measure.hlo import Cost
from vit_efficient.settings.store import store

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                  reason="libtpu, the TPU's compiler, is not installed")


@pytest.fixture
def with_libtpu(monkeypatch):
    """As where libtpu is installed: for errors that come before it is asked."""
    monkeypatch.setattr("vit_efficient.jobs.plan.find_spec", lambda name: object())


def test_floors_are_the_rooflines():
    chip = CHIPS["v5e"]
    cost = Cost(cycles=1.0, bytes_moved=819e9, bytes_sent=100e9, collectives={})
    assert floors(chip, 16, 8 * 197e12, cost) == {"compute": 1.0, "memory": 1.0, "network": 0.5}


def test_the_clock_is_what_the_peak_says():
    cells = {"v4": 8 * 128 ** 2, "v5e": 4 * 128 ** 2, "v5p": 8 * 128 ** 2, "v6e": 4 * 256 ** 2}
    for name, chip in CHIPS.items():
        assert chip.peak == pytest.approx(2 * cells[name] * chip.clock, rel=0.005)


@pytest.mark.parametrize("size, memory, bend, least", [
    (64, 1000, 0, 1), (64, 4000, 0, 1), (400, 1000, 0, 0.9), (64, 1000, 1, 0.8),
    (4096, 1000, 1, 0.8), (8, 90, 1, 1)])
def test_the_largest_batch_is_found_by_the_line_of_its_memory(size, memory, bend, least):
    asked = []
    need = lambda size: 50 + 2 * size + bend * size ** 2 // 4000

    def used(size):
        asked.append(size)
        return need(size) if need(size) <= memory else None

    found = largest_batch(used, size, 8, memory)
    best = max(n for n in range(8, 10 ** 4, 8) if need(n) <= memory)
    assert found in asked and found % 8 == 0 and len(asked) <= 6
    assert least * best <= found <= best


@pytest.mark.parametrize("size, parts, unit", [
    (512, 1, 8), (1024, 16, 128), (48, 16, 16), (6, 1, 2), (1020, 1, 4), (1024, 256, 1024)])
def test_a_trials_batch_splits_as_the_recipes_does(size, parts, unit):
    assert batch_unit(size, parts) == unit


def test_no_batch_may_fit():
    assert largest_batch(lambda size: None, 64, 8, 1000) is None


def test_the_table_of_data_sets_is_right_where_it_can_be_checked():
    digits = open_data(source="digits")
    assert KNOWN["digits"] == (len(digits.train), digits.num_classes)
    assert {name: classes for name, (_, classes) in KNOWN.items() if name != "digits"} == {
        name: classes for name, (*_, classes) in SETS.items()}


def test_a_configuration_of_another_size_is_not_taken_for_the_default(with_libtpu, tmp_path):
    config = small_config(data__source="tfds", data__name="imagenette/320px",
                          data__path=str(tmp_path))
    with pytest.raises(ValueError, match="--examples and --num_classes"):
        plan(config, tmp_path, topology=("v5e:4x4",))


@pytest.mark.parametrize("topology, message", [
    ("v5x:4x4", "--topology=v5x:4x4: .*v5e"), ("v5e", "must be the chip and the sides"),
    ("v5e:4xx", "must be the chip and the sides"), ("v4:4by4", "as v4:2x2x4")])
def test_a_pod_is_named_by_chip_and_sides(topology, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plan(small_config(), tmp_path, topology=(topology,))


def test_without_libtpu_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("vit_efficient.jobs.plan.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        plan(small_config(), tmp_path, topology=("v5e:4x4",))


def test_a_data_set_of_unknown_size_asks_for_its_numbers(with_libtpu, tmp_path):
    config = small_config(data__source="imagefolder", data__path=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="--examples and --num_classes"):
        plan(config, tmp_path, topology=("v5e:4x4",))


def test_a_teacher_that_is_only_compiled_needs_no_checkpoint(tmp_path):
    teacher = small_config()
    store(teacher, tmp_path)
    config = small_config(teacher__workdir=str(tmp_path), objective__name="soft_labels")
    frozen = assemble(config, mesh=make_mesh()).frozen()["teacher"]
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(frozen["params"]) == shapes(assemble(teacher).abstract_state.params)


def test_the_table_and_the_picture_show_every_phase(tmp_path):
    row = {"phase": "stride 16", "steps": 3600, "epochs": 1.0, "macs": 1e12, "fits": True,
           "device_bytes": 2 ** 30, "bytes_moved": 2e9, "bytes_sent": 1e8,
           "floor_seconds": {"compute": 0.25, "memory": 0.5, "network": 0.1},
           "estimate_seconds": 1.0, "step_seconds": 1.0, "share_of_peak": 0.25,
           "images_per_second": 64.0, "epoch_seconds": 3600.0}
    pod = {"devices": 4, "mesh": {"data": 4}, "chip": CHIPS["v5e"]._asdict(), "hours": 1.0,
           "chip_hours": 4.0, "cost": 8.0, "largest_batch": 128,
           "phases": [row, row | {"phase": "stride 4", "fits": False, "device_bytes": None}]}
    result = {"model": "m", "batch_size": 64, "dtype": "bfloat16", "epochs": 1.0,
              "examples": 1000, "price": 2.0, "pods": {"v5e:2x2": pod}}
    lines = table(result).splitlines()
    assert lines[4].split()[:7] == ["stride", "16", "3600", "1000", "1.00", "2.00", "0.100"]
    assert lines[4].split()[7:] == ["500.00", "1000.00", "25.0%", "64", "60.00"]
    assert lines[5].endswith("does not fit")
    assert lines[6] == "the whole run: 1.00 hours, 4.0 chip-hours, 8.00 at 2"
    pod["phases"][1] = row | {"phase": "stride 4"}
    draw(result, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000


@needs_libtpu
def test_a_plan_of_two_phases_on_a_pod_that_is_not_there(tmp_path, capsys):
    result = plan(small_config(), tmp_path, topology=("v5e:2x2",), price=2.0, largest=False)
    pod = result["pods"]["v5e:2x2"]
    coarse, fine = pod["phases"]
    assert (coarse["phase"], coarse["steps"]) == ("stride 16, dilation 5", 22)
    assert coarse["macs"] < fine["macs"]
    for row in pod["phases"]:
        assert row["fits"] and 0 < row["device_bytes"] < 2 ** 30
        assert row["step_seconds"] >= max(row["floor_seconds"].values()) > 0
        assert row["collectives"]["all-reduce"]["count"] >= 1
        assert row["bytes_sent"] > 0
    seconds = 22 * (coarse["step_seconds"] + fine["step_seconds"])
    assert pod["hours"] == pytest.approx(seconds / 3600)
    assert pod["cost"] == pytest.approx(2 * 4 * pod["hours"])
    assert json.loads((tmp_path / "plan.json").read_text())["pods"].keys() == {"v5e:2x2"}
    assert (tmp_path / "plan.png").exists()
    assert "stride 4, dilation 1" in capsys.readouterr().out


@needs_libtpu
@pytest.mark.parametrize("topology, chips", [
    ("v4:2x2x4", 16), ("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:4x4", 16)])
def test_a_chip_is_one_device(topology, chips):
    assert _mesh(small_config(), topology, chip_of(topology)).size == chips


@needs_libtpu
def test_a_batch_that_the_pod_does_not_divide_and_a_pod_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="batch_size = 60: must be a multiple of 16"):
        plan(small_config(batch_size=60), tmp_path, topology=("v5e:4x4",))
    with pytest.raises(ValueError, match="knows no such pod"):
        plan(small_config(), tmp_path, topology=("v5e:3x5",))
