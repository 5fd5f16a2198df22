"""What is installed: the lists name every import, the tested lists meet them, and the scripts make
their environments once."""
import ast
from importlib import metadata
from pathlib import Path
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

from tests.runs import ROOT

LISTS = ("requirements.txt", "tests/requirements.txt")
# A stand-in for Python: `-m venv FOLDER` copies it there, `-m pip install` writes its arguments.
PYTHON = r"""#!/bin/bash
case "$1 $2" in
  "--version ") echo "Python 3.11.99" ;;
  "-c "*) ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") test ! -e fail && echo "$*" >> "${0%/bin/python}.log" ;;
esac
"""


def requirements(file: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return {canonicalize_name(need.name): need for need in map(Requirement, filter(None, lines))}


def imported(folder: str) -> set[str]:
    """First names of the modules that the files under `folder` import."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"vit_efficient", "tests"}


@pytest.mark.parametrize("folder, lists", [
    ("vit_efficient", LISTS[:1]), ("configs", LISTS[:1]), ("tests", LISTS)])
def test_the_lists_name_every_import(folder, lists):
    named = set().union(*map(requirements, lists))
    providers = metadata.packages_distributions()
    for module in imported(folder) - {"torch", "tensorflow"}:
        assert named & {canonicalize_name(name) for name in providers.get(module, ())}, module


@pytest.mark.parametrize("lane", ["py311", "newest", "colab"])
def test_the_tested_lists_meet_the_ranges(lane):
    lines = (ROOT / f"launch/constraints/{lane}.txt").read_text().splitlines()
    tested = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    for file in LISTS:
        for name, need in requirements(file).items():
            assert need.specifier.contains(tested[name]), f"{need} but {tested[name]} in {lane}"


@pytest.mark.parametrize("line", ["--lane=py310", "--lane="])
def test_an_unknown_lane_is_refused(line):
    done = subprocess.run(["bash", ROOT / "launch" / "test.sh", line], capture_output=True,
                          text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {line}: must be py311, newest or colab\n"


def bash(folder: Path, line: str) -> subprocess.CompletedProcess:
    line = f'source "{ROOT}/launch/python.sh"; {line}'
    return subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=folder,
                          capture_output=True, text=True)


def test_a_missing_python_is_named(tmp_path):
    done = bash(tmp_path, "find_python 3.98 3.99")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Python of version 3.98 3.99 was found")


def test_the_running_python_is_found(tmp_path):
    running = "%d.%d" % sys.version_info[:2]
    place = Path(sys.executable).parent
    done = bash(tmp_path, f'PATH="{place}:$PATH" find_python 3.99 {running}')
    version = subprocess.check_output([done.stdout.strip(), "--version"], text=True)
    assert version.startswith(f"Python {running}.")


def test_an_environment_is_made_once_and_again_when_its_lists_change(tmp_path):
    folder = tmp_path / "a folder"
    (folder / "constraints").mkdir(parents=True)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    for name in "list.txt", "constraints/own.txt":
        (folder / name).write_text("jax\n")
    log = folder / ".venv.log"
    line = 'make_venv .venv "$PWD/python" list.txt torch==1 constraints/own.txt'

    def installs() -> list[str]:
        done = bash(folder, line)
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()
    assert installs() == ["-m pip install --quiet --disable-pip-version-check "
                          "--requirement list.txt torch==1 --constraint constraints/own.txt"]
    assert len(installs()) == 1
    (folder / "constraints/own.txt").write_text("jax==1\n")
    assert len(installs()) == 2
    line = line.replace("torch==1", "torch==2")
    assert len(installs()) == 3
    (folder / "list.txt").write_text("flax\n")
    (folder / "fail").touch()                   # an installation that was cut off is done again
    assert bash(folder, line).returncode == 1
    (folder / "fail").unlink()
    assert len(installs()) == 4
