"""launch/tpu_pod.sh: what it prints, what it refuses, and what it does to workers that a stand-in
for gcloud plays in folders."""
import os
from pathlib import Path
import shlex
import signal
import subprocess
import time

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
SLICE = ("--name=pod", "--zone=us-central1-a", "--type=v5litepod-16")
TRAIN = ("--", "--config=configs/asvit.py:base", "--workdir=~/it's a bucket/run")

# `ssh` runs the command in two folders, the workers' homes; installing leaves a stand-in for Python
# there, which prints its arguments and, if asked to, waits for a signal.
GCLOUD = r"""#!/usr/bin/env bash
cd "$(dirname "$0")"
echo "$4 $5" >> calls
for word in "$@"; do case $word in --command=*) command=${word#*=} ;; esac; done
case $4 in
  describe) cat state 2> /dev/null ;;
  create) echo READY > state ;;
  scp) for worker in worker0 worker1; do mkdir -p "$worker" && cp "$5" "$worker/${6#*:}"; done ;;
  ssh)
    case $command in
      *"bash launch/tpu_worker.sh")
        command="${command%bash *} mkdir -p .venv/bin && cp ../../python .venv/bin/" ;;
    esac
    code=0
    for worker in worker0 worker1; do (cd "$worker" && exec bash -c "$command") & done
    for job in $(jobs -p); do wait "$job" || code=$?; done
    exit $code ;;
esac
"""
PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "$@" > arguments
test ! -e ../../wait || { trap 'exit 143' TERM; touch ready; while :; do sleep 0.05; done; }
cat ../../code 2> /dev/null && exit "$(cat ../../code)"
exit 0
"""


def dry(*flags: str) -> list[list[str]]:
    """The words of every command that a dry run prints."""
    done = subprocess.run(["bash", SCRIPT, "--dry-run", *flags], capture_output=True, text=True,
                          env=os.environ | {"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A folder whose `gcloud` stands in for the real one."""
    for name, text in ("gcloud", GCLOUD), ("python", PYTHON):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(cloud: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", SCRIPT, *flags], cwd=cloud, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PATH": f"{cloud}:{os.environ['PATH']}", "TMPDIR": str(cloud)})


def worker_words(command: list[str]) -> list[str]:
    """The words that a worker's shell makes of a command's --command=."""
    flag = next(word for word in command if word.startswith("--command="))
    return shlex.split(flag.partition("=")[2])


def test_a_dry_run_prints_the_commands():
    describe, create, pack, copy, install, run = dry(*SLICE, "--spot", "--project=p", *TRAIN)
    tpu, place = ["gcloud", "compute", "tpus", "tpu-vm"], ["--zone=us-central1-a", "--project=p"]
    assert describe == [*tpu, "describe", "pod", *place, "--format=value(state)"]
    assert create == [*tpu, "create", "pod", *place, "--accelerator-type=v5litepod-16",
                      "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert pack[0] == "tar"
    assert {"vit_efficient", "configs", "launch", "requirements.txt"} <= set(pack)
    assert copy[:5] == [*tpu, "scp"]
    assert copy[6:] == ["pod:vit_efficient.tar.gz", *place, "--worker=all"]
    for command in install, run:
        assert command[:9] == [*tpu, "ssh", "pod", *place, "--worker=all"]
    assert worker_words(run)[-5:] == [".venv/bin/python", "-m", "vit_efficient.main", *TRAIN[1:]]


def test_a_queued_request_and_a_setup():
    create = dry(*SLICE, "--queued", "--setup=mount 'my bucket'", *TRAIN)[1]
    assert create == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod",
                      "--zone=us-central1-a", "--node-id=pod", "--accelerator-type=v5litepod-16",
                      "--runtime-version=v2-alpha-tpuv5-lite"]
    setup = dry(*SLICE, "--setup=mount 'my bucket'", *TRAIN)[-2]
    assert worker_words(setup) == ["mount", "my bucket"]


@pytest.mark.parametrize("type_, version", [
    ("v4-32", "tpu-ubuntu2204-base"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-64", "v2-alpha-tpuv6e")])
def test_the_runtime_follows_the_type(type_, version):
    assert f"--version={version}" in dry(*SLICE[:2], f"--type={type_}", *TRAIN)[1]
    assert "--version=own" in dry(*SLICE[:2], f"--type={type_}", "--version=own", *TRAIN)[1]


POD = "--name=pod --zone=us-central1-a --type=v4-8"


@pytest.mark.parametrize("line, said", [
    ("--zone=us-central1-a --type=v4-8 -- --workdir=d", "--name=: must be lower-case"),
    (f"{POD} --name=Pod -- --workdir=d", "--name=Pod: must be lower-case"),
    ("--name=pod --type=v4-8 -- --workdir=d", "--zone=: must be a zone"),
    (f"{POD} --zone=us-central1 -- --workdir=d", "--zone=us-central1: must be a zone"),
    (f"{POD} --type=v4 -- --workdir=d", "--type=v4: must be"),
    (f"{POD} --type=x7-8 -- --workdir=d", "--type=x7-8: needs a --version"),
    (f"{POD} --sport -- --workdir=d", "--sport: no such option"),
    (f"{POD} --config=asvit", "flags of the training command come after --"),
    (POD, "flags of the training command are missing"),
    (f"{POD} --", "flags of the training command are missing"),
    (f"{POD} -- --config=asvit", "needs --workdir=DIR"),
    (f"{POD} -- --workdir=gs://b/run", "mount the bucket by --setup"),
])
def test_what_is_wrong_stops_before_a_command(cloud, line, said):
    running = start(cloud, *line.split())
    out = running.communicate()[0]
    assert running.returncode == 2 and out.startswith("error: ") and said in out
    assert not (cloud / "calls").exists()


def test_every_worker_gets_the_checkout_and_the_command(cloud):
    running = start(cloud, *SLICE, "--setup=echo $PWD > setup", *TRAIN)
    out = running.communicate()[0]
    assert running.returncode == 0, out
    assert [call.split()[0] for call in (cloud / "calls").read_text().splitlines()] == [
        "describe", "create", "scp", "ssh", "ssh", "ssh"]
    for worker in cloud / "worker0", cloud / "worker1":
        home = worker / "vit_efficient"
        words = (home / "arguments").read_text().splitlines()
        assert words == ["-m", "vit_efficient.main", *TRAIN[1:]]
        for file in ("vit_efficient/main.py", "configs/asvit.py", "launch/tpu_worker.sh",
                     "requirements.txt"):
            assert (home / file).read_bytes() == (SCRIPT.parents[1] / file).read_bytes()
        assert (worker / "setup").read_text().strip() == str(worker)
    assert "the slice pod stays, and costs: gcloud compute tpus tpu-vm delete pod" in out


def test_a_slice_is_taken_again_and_what_the_run_wrote_stays(cloud):
    (cloud / "state").write_text("READY\n")
    written = cloud / "worker0" / "vit_efficient" / "runs" / "file"
    written.parent.mkdir(parents=True)
    written.touch()
    (cloud / "code").write_text("3")
    running = start(cloud, *SLICE, *TRAIN)
    out = running.communicate()[0]
    assert running.returncode == 3, out                               # the run's own exit code
    assert "create" not in (cloud / "calls").read_text() and written.exists()


def test_a_slice_that_was_taken_away_is_named(cloud):
    (cloud / "state").write_text("PREEMPTED\n")
    running = start(cloud, *SLICE, *TRAIN)
    out = running.communicate()[0]
    assert running.returncode == 2
    assert "the slice pod is PREEMPTED" in out and "tpu-vm delete pod --zone=us-central1-a" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_workers(cloud, number):
    (cloud / "wait").touch()
    running = start(cloud, *SLICE, *TRAIN)
    ready = [cloud / worker / "vit_efficient" / "ready" for worker in ("worker0", "worker1")]
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in ready) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    out = running.communicate(timeout=60)[0]
    assert running.returncode == 143 and "stopping the run on every worker" in out
