"""The command line: what is refused, and with which words; what a right one runs."""
from contextlib import contextmanager, nullcontext
import logging
from pathlib import Path
import subprocess
import sys
from types import ModuleType

from absl import flags as absl_flags
import pytest

from vit_efficient import registry
from vit_efficient.main import FLAGS, HELP, main, read
from vit_efficient.settings import schema, words
from vit_efficient.settings.schema import GROUPS
from vit_efficient.settings.store import load_stored, store
from vit_efficient.settings.values import Count, Positive

ROOT = Path(__file__).parents[1]
ASVIT = ROOT / "configs" / "asvit.py"

# Wrong whatever the config holds: what follows `python -m vit_efficient.main`, part of the message.
WRONG = {
    "": "--config=FILE is needed",
    "--job=evaluate": "--config=FILE is needed",
    "config=configs/asvit.py": "did you mean --config=configs/asvit.py?",
    "-config=configs/asvit.py": "did you mean --config=configs/asvit.py?",
    "--confg=configs/asvit.py": "--confg: no such flag, did you mean --config?",
    "---config=configs/asvit.py": "did you mean --config=configs/asvit.py?",
    "--config": "--config needs a value",
    "--config --job=train": "--config needs a value",
    "--config=": "--config=: the value is empty",
    "--config=configs/asvitt.py": "no such config",
    "--config=asvitt": "no such config",
    "--config=configs": "no such config",
    "--config=configs/asvit.py --config=configs/asvit.py": "--config is given twice",
    "--config=configs/asvit.py config.optim.lr=5": "did you mean --config.optim.lr=5?",
    "--config=configs/asvit.py -config.optim.lr=5": "did you mean --config.optim.lr=5?",
    "--config=configs/asvit.py -job=train": "did you mean --job=train?",
    "--config=configs/asvit.py job=train": "did you mean --job=train?",
    "--config=configs/asvit.py train": "train: a flag is written --name=value",
    "--config=configs/asvit.py -- --config.optim.lr=5": "--: a flag is written --name=value",
    "--config=configs/asvit.py --=5": "--=5: a flag is written --name=value",
    "--config=configs/asvit.py --config.optim.lr=": "--config.optim.lr=: the value is empty",
    "--config=configs/asvit.py --config.optim.lr": "--config.optim.lr needs a value",
    "--config=configs/asvit.py --config.optim.lr=1 --config.optim.lr=2": "given twice: 1 and 2",
    "--config=configs/asvit.py --workdir=": "--workdir=: the value is empty",
    "--config=configs/asvit.py --workdir=gs://bucket/run": "must be a folder of this machine",
    "--config=configs/asvit.py --processes=two": "--processes=two: must be a whole number",
    "--config=configs/asvit.py --process=-1": "--process=-1: must be a whole number at least 0",
    "--workdir=nowhere": "nowhere holds no config.json: give --config",
    "--workdir=nowhere --job=evaluate": "nowhere holds no config.json: give --config",
    "--wrkdir=nowhere": "--wrkdir: no such flag, did you mean --workdir?",
    "--help train": "train: a flag is written --name=value",
    "--help --job=trian": "--job=trian: no such job, did you mean train?",
}

# Wrong for configs/asvit.py: what follows `--config=configs/asvit.py:`.
WRONG_FOR_ASVIT = {
    "digit": "no such word 'digit', did you mean digits?",
    "digits,smal": "no such word 'smal', did you mean small?",
    "digits,": "no such word ''",
    "digits,small,base": "variant is given twice",
    "digits,data=imagenet": "data is given twice",
    "digits,schedule=p38": "schedule=p38: must be one of",
    "digits,imagefoldr=/data": "did you mean imagefolder=?",
    "digits --config.optim.lrr=1e-3": "optim.lrr = 1e-3: no such key, did you mean optim.lr?",
    "digits --config.optm.lr=1e-3": "did you mean optim.lr?",
    "digits --config.lr=1e-3": "did you mean optim.lr?",
    "digits --lr=1e-3": "--lr: no such flag, did you mean --config.optim.lr?",
    "digits --config.optim=1e-3": "it is a group",
    "digits --config.=1e-3": "no such key",
    "digits --config.optim.lr=-1": "optim.lr = -1: must be a finite number above 0",
    "digits --config.optim.lr -1": "optim.lr = -1: must be a finite number above 0",
    "digits --config.optim.lr=0": "optim.lr = 0: must be a finite number above 0",
    "digits --config.optim.lr=nan": "optim.lr = nan: must be",
    "digits --config.optim.lr=inf": "optim.lr = inf: must be",
    "digits --config.optim.lr=fast": "optim.lr = fast: must be",
    "digits --config.optim.lr=1e-3,1e-4": "optim.lr = 1e-3,1e-4: must be",
    "digits --config.epochs=0": "epochs = 0: must be",
    "digits --config.batch_size=64.0": "batch_size = 64.0: must be a whole number at least 1",
    "digits --config.seed=-1": "seed = -1: must be a whole number at least 0",
    "digits --config.dtype=float16": "did you mean bfloat16?",
    "digits --config.data.source=digit": "did you mean digits?",
    "digits --config.augment.scale=0.08": "augment.scale = 0.08: must be a tuple of 2",
    "digits --config.augment.scale=0.08,1,2": "must be a tuple of 2",
    "digits --config.augment.flip=2": "augment.flip = 2: must be",
    "digits --config.model.name=asvit_smal": "did you mean asvit_small?",
    "digits --config.model.drop_path=1": "model.drop_path = 1: must be",
    "digits --config.model.ape=1": "model.ape = 1: must be true or false",
    "digits --config.model.heads=2": "model.heads = 2: no such key",
    "digits --config.objective.name=supervisd": "did you mean supervised?",
    "digits --job=trian": "--job=trian: no such job, did you mean train?",
    "digits --splitt=val --job=evaluate": "--splitt: no such flag, did you mean --split?",
    "digits --split=test --job=evaluate": "--split=test: must be one of",
    "digits --split=val": "--split: no such flag",
    "digits --coordinator=localhost:1234": "--processes and --process belong together",
    "digits --coordinator=localhost:1234 --processes=2 --process=2": "processes count from 0",
}


def open_data(*, source: str, image_size: Count = 32):
    ...


def make_optimizer(length, *, lr: Positive):
    ...


@contextmanager
def nothing_written(folder: Path):
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs the test in an empty folder, and leaves logging as it was."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], logging.getLogger("vit_efficient").level
    yield
    root.handlers[:] = handlers
    logging.getLogger("vit_efficient").setLevel(level)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A toy engine: a recipe `toy`, jobs that note what they get, no hosts."""
    calls = []

    def train(config, workdir):
        calls.append((config, workdir))
        logging.getLogger("vit_efficient.jobs.train").info("it begins")
        logging.getLogger("orbax").info("chatter")
        store(config, workdir)

    def evaluate(config, workdir, *, split: str, limit: Count | None = None, verbose: bool = False):
        calls.append((config, workdir, split, limit, verbose))

    def fails(config, workdir, *, how: str = "rule"):
        if how == "rule":
            raise ValueError(
                "epochs = 1: too few")
        return {"int": lambda: int("three"), "file": lambda: open("nowhere"),
                "list": lambda: [].remove(1)}[how]()

    toy = ModuleType("toy_engine")
    vars(toy).update(train=train, evaluate=evaluate, fails=fails)
    hosts = ModuleType("vit_efficient.engine.distributed")
    hosts.start = lambda *args: calls.append(args)
    hosts.fail_fast = lambda report: nullcontext(calls.append("guarded"))
    for module in (toy, hosts):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    jobs = {name: vars(toy)[name] for name in ("train", "evaluate", "fails")}
    groups = {"data": f"{__name__}:open_data", "optim": f"{__name__}:make_optimizer"}
    monkeypatch.setattr(registry, "jobs", lambda paper: list(jobs))
    monkeypatch.setattr(registry, "load_job", lambda name, paper="": jobs[name])
    monkeypatch.setattr(schema, "GROUPS", groups)
    monkeypatch.setattr(schema, "SEAMS", {"objective": ("objective", "supervised")})
    monkeypatch.setattr(words, "FOLDERS", (tmp_path / "configs",))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.py").write_text("""
from typing import Literal
from ml_collections import ConfigDict
def get_config(size: Literal["small", "base"] = "small", *, path: str = ""):
    return ConfigDict(dict(epochs=2, batch_size=8, data=dict(source="digits"), optim=dict(lr=0.1),
                           evaluate=dict(limit=100)))
""")
    return calls


def refused(capsys, line: str) -> str:
    """The message of a wrong command line, which exits with 2 and says one thing on stderr."""
    with nothing_written(Path.cwd()):
        assert main(line.replace("configs/asvit.py", str(ASVIT)).split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.endswith("\n") and "Traceback" not in err and not out
    return err.replace(str(ASVIT), "configs/asvit.py")


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line(line, capsys, monkeypatch):
    # refused before any config is resolved
    monkeypatch.setattr("vit_efficient.settings.store.resolve", None)
    assert WRONG[line] in refused(capsys, line)


@pytest.mark.parametrize("line", WRONG_FOR_ASVIT)
def test_a_wrong_command_line_for_asvit(line, capsys):
    assert WRONG_FOR_ASVIT[line] in refused(capsys, f"--config=configs/asvit.py:{line}")


def test_wrong_lines_end_in_seconds_without_a_device(tmp_path):
    for line in ("--config=nowhere.py", "config.lr=5", ""):
        command = [sys.executable, "-X", "importtime", "-m", "vit_efficient.main", *line.split()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        rows = done.stderr.splitlines()
        imported = {row.split("|")[-1].strip() for row in rows if row.startswith("import time:")}
        said, = (row for row in rows if not row.startswith("import time:"))
        assert done.returncode == 2 and said.startswith("error: ") and not done.stdout
        assert "jax" not in imported and "ml_collections" in imported


def test_a_wrong_config_touches_no_device():
    code = ("import sys; from vit_efficient.main import main; assert main(sys.argv[1:]) == 2; "
            "from jax._src import xla_bridge; sys.exit(xla_bridge.backends_are_initialized())")
    command = [sys.executable, "-c", code, f"--config={ASVIT}:digits", "--config.optim.lr=-1"]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0


# Right lines

def test_a_run_its_default_workdir_and_going_on_with_it(engine, tmp_path, capsys):
    line = ["--config=toy:base,path=/my data/x", "--config.optim.lr=0.5"]
    assert main(line) == 0
    hosts, guard, (config, workdir) = engine
    assert guard == "guarded"
    assert hosts == (None, None, None) and workdir == Path("runs/toy-base-path-my-data-x")
    assert (config.recipe, config.optim.lr, config.epochs) == ("toy:base,path=/my data/x", 0.5, 2.0)
    err = capsys.readouterr().err
    assert err.endswith(" INFO it begins\n") and "chatter" not in err
    assert absl_flags.FLAGS.is_parsed()

    engine.clear()
    assert main(["--workdir", str(workdir)]) == 0 and engine[-1][0] == config
    assert main([f"--workdir={workdir}", *line]) == 0
    for other in (["--config=toy"], ["--config.seed=1"], [*line, "--config.data.image_size=8"]):
        assert main([f"--workdir={workdir}", *other]) == 2
        assert "is the config of another run:\n  " in capsys.readouterr().err
    assert load_stored(workdir) == config


@pytest.mark.parametrize("line, options", [
    ("--split=val", ("val", 100, False)), ("--split val --limit 7 --verbose", ("val", 7, True)),
    ("--verbose --split=val --limit=None", ("val", None, True)),
    ("--verbose=false --split=val", ("val", 100, False)),
    ("--split=val --config.evaluate.limit=3", ("val", 3, False)),
    ("--config.evaluate.split=val", ("val", 100, False))])
def test_a_jobs_own_flags_come_before_its_group(engine, line, options):
    assert main(["--config=toy", "--job=evaluate", *line.split()]) == 0
    assert engine[-1][2:] == options


@pytest.mark.parametrize("line, said", [
    ("", "--job=evaluate needs --split: a text"),
    ("--split=val --limit=0", "--limit=0: must be a whole number at least 1"),
    ("--split=val --limits=3", "did you mean --limit?"),
    ("--split=val --verbose=1", "--verbose=1: must be true or false"),
    ("--split=val --lr=3", "did you mean --config.optim.lr?"), ("--split", "--split needs a value"),
    ("--split=val --config.evaluate.limits=1", "did you mean evaluate.limit?"),
    ("--split=val --workdir=configs/toy.py", "configs/toy.py: is a file, must be a folder")])
def test_wrong_flags_of_a_job(engine, capsys, line, said):
    assert said in refused(capsys, f"--config=toy --job=evaluate {line}") and not engine


def test_many_hosts(engine):
    line = "--config=toy --coordinator=host:1234 --processes=4 --process=3"
    assert main(line.split()) == 0 and engine[0] == ("host:1234", 4, 3)


@pytest.mark.parametrize("line", [
    "--coordinator=host:1234", "--processes=4 --process=3", "--process=0",
    "--coordinator=host:1234 --processes=4 --process=4"])
def test_wrong_hosts(engine, capsys, line):
    assert "--coordinator, --processes and --proc" in refused(capsys, f"--config=toy {line}")


def test_only_the_packages_own_errors_lose_their_traceback(engine, capsys, monkeypatch):
    job = registry.load_job("fails")
    monkeypatch.setitem(job.__globals__, "__name__", "vit_efficient.toy")
    said = refused(capsys, "--config=toy:base --job=fails")
    assert said == "error: epochs = 1: too few (toy:base)\n"
    for how, error in (("int", ValueError), ("file", FileNotFoundError), ("list", ValueError)):
        with pytest.raises(error):
            main(["--config=toy", "--job=fails", f"--how={how}"])
    monkeypatch.setitem(job.__globals__, "__name__", "some_library.toy")
    with pytest.raises(ValueError, match="too few"):
        main(["--config=toy", "--job=fails"])


def test_help_fits_a_screen_and_its_examples_are_read(engine, capsys):
    assert main(["--help"]) == 0 and capsys.readouterr().out.startswith(HELP + "\n")
    assert len(HELP.splitlines()) <= 24 and max(map(len, HELP.splitlines())) <= 100
    assert all(f"--{name}" in HELP for name in FLAGS)
    assert main(["--config=toy", "--job=evaluate", "--help"]) == 0
    assert "--limit=VALUE  a whole number at least 1 or None; default" in capsys.readouterr().out


def test_reading_checks_everything_and_runs_nothing(engine, tmp_path):
    with nothing_written(tmp_path):
        command = read(["--config=toy", "--config.seed=3"])
    assert (command.config.seed, command.workdir, command.options) == (3, Path("runs/toy"), {})
    assert not engine


def test_every_group_of_the_table_exists():
    for place in GROUPS.values():
        assert callable(registry.load(place))
