"""The notebooks of launch/colab: stored clean, install beside JAX, stop on an unwanted CPU, run."""
import os
from pathlib import Path
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbclient
import nbformat
import pytest

from tests.runs import ROOT, environment

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "launch" / "colab").glob("*.ipynb"))}
# A part of what a Colab machine has.
COLAB = {"jax": "0.7.2", "jaxlib": "0.7.2", "jax-cuda12-plugin": "0.7.2", "numpy": "2.1.3",
         "flax": "0.11.2", "optax": "0.2.8", "orbax-checkpoint": "0.12.4", "protobuf": "5.29.6",
         "Pillow": "11.3.0", "ml_collections": "1.1.0"}


def code_cells(notebook: nbformat.NotebookNode) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def first_cell() -> str:
    """The installation, in all notebooks the same."""
    cells = {code_cells(nbformat.read(path, 4))[0].source for path in NOTEBOOKS.values()}
    assert len(cells) == 1
    return cells.pop()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout's notebook folder."""
    for name in "vit_efficient", "configs":
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    folder = tmp_path / "launch" / "colab"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_stored_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS[name], 4)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None
        compile(cell.source, cell.id, "exec")


def test_it_installs_what_is_missing_and_keeps_jax(monkeypatch):
    names = {}
    exec(first_cell().partition("root = checkout()")[0], names)
    distributions = [SimpleNamespace(metadata={"Name": name}, version=version)
                     for name, version in COLAB.items()]
    monkeypatch.setattr(names["metadata"], "distributions", lambda: distributions)
    calls = []

    def run(command, **options):
        calls.append((command, Path(command[command.index("-c", 4) + 1]).read_text().split()))
        return SimpleNamespace(returncode=0)
    monkeypatch.setattr(names["subprocess"], "run", run)
    monkeypatch.delitem(sys.modules, "google.protobuf", raising=False)
    names["install"](ROOT / "requirements.txt")
    (command, constraints), = calls
    asked = {word.partition(">")[0] for word in command}
    assert {"clu", "tensorboardX", "protobuf"} <= asked
    assert not asked & {"jax", "numpy", "flax", "optax", "orbax-checkpoint", "pillow",
                        "ml_collections"}
    assert {"jax==0.7.2", "jaxlib==0.7.2", "jax-cuda12-plugin==0.7.2",
            "numpy==2.1.3"} <= set(constraints)
    assert "--upgrade" not in command and "-U" not in command


def test_it_asks_for_a_restart_where_an_old_protobuf_is_loaded(monkeypatch):
    names = {}
    exec(first_cell().partition("root = checkout()")[0], names)
    monkeypatch.setattr(names["metadata"], "distributions", lambda: [])
    monkeypatch.setattr(names["subprocess"], "run",
                        lambda command, **options: SimpleNamespace(returncode=0))
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(RuntimeError, match="Restart session"):
        names["install"](ROOT / "requirements.txt")


def test_it_stops_on_an_unwanted_cpu(checkout):
    quick = {name: value for name, value in os.environ.items() if name != "QUICK"}
    done = subprocess.run([sys.executable, "-c", first_cell()], cwd=checkout, text=True,
                          capture_output=True, env=quick | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 1
    assert "sees 8 x cpu" in done.stdout
    assert "only a CPU here: choose Runtime > Change runtime type" in done.stderr


def executed(name: str, checkout: Path) -> tuple[str, int]:
    """What the notebook prints from a clean kernel, and how many pictures it shows."""
    notebook = nbformat.read(NOTEBOOKS[name], 4)
    place = {"metadata": {"path": str(checkout)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute(
        env=environment() | {"QUICK": "1"})
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return ("".join(output.get("text", "") for output in outputs),
            sum("image/png" in output.get("data", {}) for output in outputs))


def test_asvit_runs_from_a_clean_kernel(checkout):
    text, pictures = executed("asvit", checkout)
    for stride, tokens in (16, "2 x  2 =  4"), (8, "4 x  4 = 16"), (4, "8 x  8 = 64"):
        assert f"stride {stride:2},  {tokens} tokens" in text
    assert "top-1 " in text
    assert pictures == 2                                        # curves, tokens
    assert (checkout / "runs" / "digits-quick" / "curves.png").exists()


def test_scala_runs_from_a_clean_kernel(checkout):
    text, pictures = executed("scala", checkout)
    for channels, ratio in ((12, "0.25"), (24, "0.5"), (36, "0.75"), (48, "1")):
        assert f"width {ratio:>4}: {channels:3} channels" in text
    assert "* never trained at this width" in text and pictures == 2     # widths, the switch
    assert (checkout / "runs" / "scala-digits-quick" / "widths.csv").exists()
