"""Weight files: every published layout, both formats, and what is refused."""
import argparse
import json
import os
from pathlib import Path
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights.hostile import HOSTILE, archive, state, tensor
from tests.weights.numbers import filled, same
from vit_efficient.engine import pretrained
from vit_efficient.weights import files, interop, safetensors, torch_zip
from vit_efficient.zoo import create_model

ROOT = Path(__file__).parents[2]
OPTIONS = dict(num_classes=7, image_size=32, width=8, depth=2, num_heads=2, patch_size=8)
MEMORY = 2 * 2 ** 30


@pytest.fixture(scope="module")
def tiny():
    """(model, its state_dict)"""
    model = create_model("deit", **OPTIONS)
    return model, filled(model)


def given(model, path, **options) -> dict:
    return interop.to_torch(model, pretrained.given_weights(model, str(path), **options))


# What is refused

@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_ends_in_one_clear_error(name, tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build, message = HOSTILE[name]
    path = tmp_path / "weights"
    build(path)
    with pytest.raises(ValueError, match=message) as error:
        pretrained.given_weights(tiny[0], str(path))
    assert str(error.value).startswith(f"init_from = {path}: ") and len(str(error.value)) < 4000
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


# Opens every file of a folder; prints what the interpreter was asked for that reading needs not,
# and the peak of its memory (getrusage would count that of the process that started it).
WATCHED = """
import os, re, sys
from pathlib import Path
from vit_efficient.engine import pretrained
from vit_efficient.weights import interop
from vit_efficient.zoo import create_model
paths = sorted(Path(sys.argv[1]).iterdir())
model = create_model("deit", **{OPTIONS})
interop.layout(model)
acts, writing = [], os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, details):
    if event in ("pickle.find_class", "os.system", "os.fork", "os.forkpty", "os.exec", "os.spawn",
                 "os.posix_spawn", "subprocess.Popen", "os.remove", "os.rename", "os.mkdir",
                 "os.truncate", "socket.connect", "ctypes.dlopen"):
        acts.append(event)
    if event == "open" and details[2] & writing:
        acts.append(details[0])

sys.addaudithook(watch)
for path in paths:
    try:
        pretrained.given_weights(model, str(path))
    except ValueError:
        continue
    raise SystemExit(path.name + " was read")
print(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], *acts)
"""


def test_no_bad_file_takes_much_memory_or_does_anything(tmp_path):
    """All of them, in a process of its own."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, (build, _) in HOSTILE.items():
        build(folder / name.replace(" ", "_"))
    count = len(list(folder.iterdir()))
    code = WATCHED.replace("{OPTIONS}", repr(OPTIONS))
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=tmp_path, text=True,
                          capture_output=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    peak, *acts = done.stdout.split()
    assert 1024 * int(peak) < MEMORY and not acts
    assert len(list(folder.iterdir())) == count >= 20 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_every_half_of_a_file_is_refused(suffix, tmp_path, tiny):
    model, state_dict = tiny
    files.write(tmp_path / f"whole{suffix}", state_dict, container="model")
    data, part = (tmp_path / f"whole{suffix}").read_bytes(), tmp_path / f"part{suffix}"
    for size in [*range(1, len(data), len(data) // 50), len(data) - 1]:
        part.write_bytes(data[:size])
        with pytest.raises(ValueError):
            pretrained.given_weights(model, str(part))


def test_a_flipped_bit_of_a_pth_is_noticed(tmp_path, tiny):
    model, state_dict = tiny
    files.write(tmp_path / "x.pth", state_dict)
    data = bytearray((tmp_path / "x.pth").read_bytes())
    at = data.find(state_dict["pos_embed"].tobytes()) + 5
    data[at] ^= 4
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(ValueError, match="damaged: Bad CRC-32"):
        pretrained.given_weights(model, str(tmp_path / "x.pth"))


def test_random_damage_never_ends_in_another_error(tmp_path, tiny):
    model, state_dict = tiny
    rng = np.random.default_rng(0)
    for suffix in (".pth", ".safetensors"):
        files.write(tmp_path / f"whole{suffix}", state_dict, container="model")
        data = (tmp_path / f"whole{suffix}").read_bytes()
        begin = data.find(b"\x80\x02") if suffix == ".pth" else 0
        for _ in range(60):
            hurt = bytearray(data)
            for _ in range(rng.integers(1, 5)):
                hurt[begin + rng.integers(2000)] = rng.integers(256)
            (tmp_path / "hurt").write_bytes(hurt)
            try:
                pretrained.given_weights(model, str(tmp_path / "hurt"))
            except ValueError as error:
                assert str(error).startswith("init_from = ")


def test_files_of_another_model_or_class_count_are_refused(tmp_path, tiny):
    _, state_dict = tiny
    files.write(tmp_path / "x.safetensors", state_dict)
    with pytest.raises(ValueError, match="another kind of model"):
        pretrained.given_weights(create_model("asvit_tiny", image_size=32),
                            str(tmp_path / "x.safetensors"))
    for change, message in (({"num_classes": 5}, "head.bias: shape"),
                            ({"width": 16}, "norm.bias: shape"), ({"depth": 1}, "not expected"),
                            ({"image_size": 48}, "pos_embed: shape")):
        with pytest.raises(ValueError, match=message):
            pretrained.given_weights(create_model("deit", **OPTIONS | change),
                                str(tmp_path / "x.safetensors"))


def test_a_file_that_is_not_there_is_named(tmp_path, tiny):
    with pytest.raises(ValueError, match="there is no such file"):
        pretrained.given_weights(tiny[0], str(tmp_path / "x.pth"))


# What is read and written

@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("container", ["", "model"])
def test_what_is_written_is_read_bit_for_bit_and_in_order(suffix, container, tmp_path, tiny):
    model, state_dict = tiny
    path = tmp_path / f"x{suffix}"
    files.write(path, state_dict, container=container, about={"model": {"depth": 2}},
                extras={"flops": [0.5, 1.5]})
    tree = files.read(path)
    assert tree.get("flops") == ([0.5, 1.5] if container and suffix != ".safetensors" else None)
    found = {name: np.asarray(entry) for name, entry in files.state_dict(tree).items()}
    assert same(found, state_dict)
    if container or suffix == ".safetensors":
        assert tree[files.OURS] == {"model": {"depth": 2}}
    assert same(given(model, path), state_dict)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_dtype_shape_and_shared_array(suffix, tmp_path):
    arrays = {f"{dtype}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in safetensors.NAMES
              if suffix == ".safetensors" or dtype in torch_zip.TYPES}
    arrays |= {"scalar": np.array(3), "empty": np.zeros((0, 4), np.float32),
               "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    arrays["again"] = arrays["scalar"]
    files.write(tmp_path / f"x{suffix}", arrays)
    found = files.state_dict(files.read(tmp_path / f"x{suffix}"))
    assert jnp.dtype("bfloat16") in {entry.dtype for entry in found.values()}
    assert same({name: np.asarray(entry) for name, entry in found.items()}, arrays)


def test_equal_weights_give_equal_files_and_no_file_is_overwritten(tmp_path, tiny):
    for suffix in (".pth", ".safetensors"):
        for name in "ab":
            files.write(tmp_path / f"{name}{suffix}", tiny[1])
        a, b = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert a == b
        with pytest.raises(ValueError, match="is there already"):
            files.write(tmp_path / f"a{suffix}", {})
    with pytest.raises(ValueError, match="must end with"):
        files.write(tmp_path / "x.bin", {})
    with pytest.raises(ValueError, match="no such folder"):
        files.write(tmp_path / "nowhere" / "x.pth", {})
    assert len(list(tmp_path.iterdir())) == 4


def layouts(state_dict: dict, other: dict) -> dict[str, tuple[dict, dict]]:
    """Layout -> (what is saved, the state_dict that `kind` None reads)."""
    parallel = {f"module.{name}": array for name, array in state_dict.items()}
    return {
        "bare": (state_dict, state_dict),
        "DeiT, Scala, SReT": ({"model": state_dict, "model_ema": other, "epoch": 3, "optimizer": {
            "state": {0: {"step": 1, "exp_avg": other["norm.bias"]}}}}, state_dict),
        "DVT, released": ({"model_state_dict": state_dict, "flops": [0.5, 1.4, 3.3],
                           "anytime_classification": [1.0, 2.0, 3.0],
                           "dynamic_threshold": np.zeros((59, 3))}, state_dict),
        "DVT, trained": ({"epoch": 1, "arch": "x", "state_dict": other, "version": 2,
                          "state_dict_ema": state_dict, "metric": 0.5}, state_dict),
        "FKD": ({"epoch": 1, "arch": "x", "state_dict": parallel, "best_acc1": 1.5}, state_dict),
        "parallel": (parallel, state_dict),
    }


@pytest.mark.parametrize("name", layouts({}, {"norm.bias": None}))
def test_every_published_layout_is_read(name, tmp_path, tiny):
    model, state_dict = tiny
    saved, expected = layouts(state_dict, {k: v + 1 for k, v in state_dict.items()})[name]
    torch_zip.write(tmp_path / "x.pth.tar", saved)
    assert same(given(model, tmp_path / "x.pth.tar"), expected)


def test_kind_chooses_raw_or_averaged_weights(tmp_path, tiny):
    model, raw = tiny
    ema = {name: array + 1 for name, array in raw.items()}
    torch_zip.write(tmp_path / "x.pth", {"model": raw, "model_ema": ema})
    assert same(given(model, tmp_path / "x.pth", kind="ema"), ema)
    assert same(given(model, tmp_path / "x.pth", kind="raw"), raw)
    torch_zip.write(tmp_path / "y.pth", raw)
    with pytest.raises(ValueError, match="must have a state_dict under model_ema or"):
        given(model, tmp_path / "y.pth", kind="ema")


def test_the_checkpoints_of_svite_are_read_with_arguments_and_masks():
    for path in sorted((ROOT / "tests/golden/svite").glob("*.pth")):
        tree = files.read(path)
        assert tree["args"]["atten_head"] == 4 and len(files.state_dict(tree)) >= 32
        masks = {**tree["mask"], **tree["other_mask"], **tree["atten_mask"]}
        assert masks and all(set(np.unique(np.asarray(mask))) <= {0, 1} for mask in masks.values())


def test_views_of_one_storage_are_read_with_offset_and_strides(tmp_path):
    numbers = np.arange(16, dtype="<f4")
    archive(tmp_path / "x", state(("turned", tensor((3, 4), (1, 3), 16, offset=4)),
                                  ("one", tensor((), (), 16, offset=15))), {"0": numbers.tobytes()})
    found = files.state_dict(files.read(tmp_path / "x"))
    np.testing.assert_array_equal(np.asarray(found["turned"]), numbers[4:].reshape(4, 3).T)
    assert np.asarray(found["one"]).shape == () and np.asarray(found["one"]) == 15


# Against torch

def test_torch_and_we_read_one_anothers_files(tmp_path, tiny):
    torch = pytest.importorskip("torch")
    _, state_dict = tiny
    saved = {"model": {k: torch.from_numpy(v) for k, v in state_dict.items()},
             "args": argparse.Namespace(lr=0.1, name="x", betas=(0.9, 0.999), none=None),
             "flops": np.array([1.0, 2.0]), "metric": np.float64(0.5), "epoch": 2 ** 40,
             "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
             "weight": torch.nn.Parameter(torch.ones(3)), "size": torch.Size([1, 2])}
    torch.save(saved, tmp_path / "theirs.pth")
    tree = files.read(tmp_path / "theirs.pth")
    assert tree["args"] == vars(saved["args"]) and tree["epoch"] == 2 ** 40
    assert tree["metric"] == 0.5 and tree["size"] == (1, 2)
    np.testing.assert_array_equal(np.asarray(tree["flops"]), saved["flops"])
    np.testing.assert_array_equal(np.asarray(tree["half"]), np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(np.asarray(tree["weight"]), np.ones(3))
    assert same({k: np.asarray(v) for k, v in files.state_dict(tree).items()}, state_dict)
    files.write(tmp_path / "ours.pth", state_dict, container="model", about={"a": [1, None, 0.5]})
    for mmap in (False, True):
        ours = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
        assert ours[files.OURS] == {"a": [1, None, 0.5]}
        assert same({k: v.numpy() for k, v in ours["model"].items()}, state_dict)


def test_a_file_of_torch_before_16_is_refused_with_what_to_do(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="save it again with torch.save"):
        files.read(tmp_path / "old.pth")


def test_the_safetensors_package_reads_ours(tmp_path, tiny):
    package = pytest.importorskip("safetensors.numpy")
    state_dict = tiny[1] | {"count": np.array(3)}
    files.write(tmp_path / "x.safetensors", state_dict)
    assert same(dict(sorted(package.load_file(tmp_path / "x.safetensors").items())),
                dict(sorted(state_dict.items())))
    package.save_file(state_dict, tmp_path / "theirs.safetensors")
    found = files.state_dict(files.read(tmp_path / "theirs.safetensors"))
    assert same({name: np.asarray(found[name]) for name in state_dict}, state_dict)


def test_metadata_that_is_no_json_is_left_alone(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", {"a": np.zeros(1)}, {files.OURS: "{"})
    assert files.read(tmp_path / "x.safetensors")[files.OURS] == {}
    assert json.dumps(files.read(tmp_path / "x.safetensors")[files.OURS]) == "{}"
