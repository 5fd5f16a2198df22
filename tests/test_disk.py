"""A file is whole or the old one, whatever ends its writer."""
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.runs import ROOT
from vit_efficient import disk


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        with disk.whole(path) as neighbour:
            neighbour.write_text("ne")
            assert neighbour.parent == tmp_path and path.read_text() == "old"
            raise KeyError("in the middle")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("dataset.json", "old")]


KILLED = """
import os, signal, sys
from vit_efficient import disk
with disk.whole(sys.argv[1]) as neighbour:
    neighbour.write_text("much longer than the next")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file_and_the_next_writer_its_own(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    left, = set(tmp_path.iterdir()) - {path}
    assert left.name == f".dataset.json{disk.UNFINISHED}"
    disk.write_text(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("dataset.json", "new")]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Flushed is what then takes the name: the same file, with all of its bytes."""
    path, done = tmp_path / "x", []
    flush, rename = os.fsync, os.replace

    def fsync(file):
        done.append(("flushed", os.fstat(file).st_ino, os.fstat(file).st_size, path.exists()))
        flush(file)

    def replace(source, target):
        done.append(("named", os.stat(source).st_ino, os.stat(source).st_size, path.exists()))
        rename(source, target)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    disk.write_text(path, "seven b")
    number = path.stat().st_ino
    assert done == [("flushed", number, 7, False), ("named", number, 7, False)]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    disk.write_text(path, "old")

    def full(file):
        raise OSError("disk full")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        disk.write_text(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


def test_text_keeps_its_line_ends_and_json_holds_finite_numbers(tmp_path):
    disk.write_text(tmp_path / "x", "a\r\nb\n\u00e9")
    assert (tmp_path / "x").read_bytes() == b"a\r\nb\n\xc3\xa9"
    disk.write_json(tmp_path / "x", {"a": [1, 0.5, None]})
    assert json.loads((tmp_path / "x").read_text()) == {"a": [1, 0.5, None]}
    with pytest.raises(ValueError):
        disk.write_json(tmp_path / "x", {"a": float("nan")})
    assert json.loads((tmp_path / "x").read_text()) == {"a": [1, 0.5, None]}
