"""`pytest tests/golden --golden-dir=DIR` checks DIR/<paper>/*.npz, one test a file."""
from pathlib import Path

OWN = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--golden-dir", type=Path, default=OWN,
                     help="folder of fixtures, <paper>/<file>.npz; default: the project's own")


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden-dir")
        files = sorted(folder.glob("*/*.npz"))
        assert files, f"{folder} holds no <paper>/<file>.npz"
        metafunc.parametrize("golden_file", files,
                             ids=[f"{file.parent.name}/{file.stem}" for file in files])
