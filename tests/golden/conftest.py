"""`pytest tests/golden --golden-dir=DIR` checks DIR/<paper>/*.npz, one test a file."""
from pathlib import Path

OWN = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--golden-dir", type=Path, default=OWN,
                     help="folder of fixtures, <paper>/<file>.npz; default: the project's own")


def pytest_generate_tests(metafunc):
    """Gives `test_<paper>.py` the files of its paper; every folder must have such a module."""
    if "golden_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir")
        files = sorted(folder.glob("*/*.npz"))
        assert files, f"{folder} holds no <paper>/<file>.npz"
        for paper in {file.parent.name for file in files}:
            assert (OWN / f"test_{paper}.py").exists(), f"no test_{paper}.py checks {paper}/"
        own = metafunc.module.__name__.rpartition(".")[2].removeprefix("test_")
        mine = [file for file in files if file.parent.name == own]
        metafunc.parametrize("golden_file", mine,
                             ids=[f"{file.parent.name}/{file.stem}" for file in mine])
