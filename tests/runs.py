"""A small run of the digits config, in this process or by the real command."""
import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys

from tests import forks
import vit_efficient

ROOT = Path(__file__).parents[1]
# Two phases of a model of 4 tiny blocks, 44 steps, a checkpoint every 11: seconds to compile.
SMALL = {
    "epochs": 2.0, "model.name": "asvit", "model.arch": "4,1,1,1|2,1,1,1|2,1,1,1|2,1,1,1|8,8",
    "model.drop_path": 0.1, "phases.schedule": ((0.0, 16, None), (1.0, 4, None)),
    "optim.warmup_epochs": 0.0, "validation.every_epochs": 1.0, "checkpoint.every_epochs": 0.5,
    "log.every": 1}
# One phase of a ViT of one block, 22 steps: where it does not matter what is trained.
PLAIN = {
    "epochs": 1.0, "model.name": "deit", "model.width": 48, "model.depth": 1,
    "model.num_heads": 3, "model.patch_size": 8, "phases.name": "constant",
    "optim.warmup_epochs": 0.0, "checkpoint.every_epochs": 0.5, "log.every": 1}


def small_config(base: dict = SMALL, **changes):
    """The small run's config, or that of PLAIN; `optim__lr=1` changes optim.lr."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return vit_efficient.config("asvit:digits", base | changes)


def command(workdir: Path, *flags: str, config: dict = SMALL) -> list[str]:
    """The real command for a run of the digits config in `workdir`."""
    overrides = [f"--config.{name}={_text(value)}" for name, value in config.items()]
    return [sys.executable, "-m", "vit_efficient.main", "--config=asvit:digits",
            f"--workdir={workdir}", *overrides, *flags]


def environment(devices: int = 1) -> dict[str, str]:
    """This process's environment, for a command on `devices` CPU devices."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}


def start(workdir: Path, *flags: str, devices: int = 1, config: dict = SMALL,
          forked: bool = True) -> subprocess.Popen | forks.Forked:
    """The command, started, by default in a fork without the seconds of its imports; its output
    goes to `workdir`.log."""
    line, log = command(workdir, *flags, config=config), f"{workdir}.log"
    if forked:
        return forks.start(line[2], line[3:], environment(devices), log)
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(line, stdout=file, stderr=file, env=environment(devices), cwd=ROOT)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(workdir: Path) -> dict[int, float]:
    """Loss of every step in the metrics file, which must hold each once."""
    found: dict[int, float] = {}
    path = Path(workdir) / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.endswith("}") and "loss" in (record := json.loads(line)):
            assert record["step"] not in found, f"step {record['step']} stands twice in {path}"
            found[record["step"]] = record["loss"]
    return found


def final_state(workdir: Path) -> dict[str, str]:
    """Fingerprint of every leaf of the newest checkpoint."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    record = json.loads((workdir / f"checkpoints/{max(steps)}/manifest/metadata").read_text())
    return {name: leaf["fingerprint"] for name, leaf in record["leaves"].items()}


def _text(value) -> str:
    return json.dumps(value).replace("null", "None").replace('"', "") if isinstance(
        value, (list, tuple)) else str(value)
