"""Two real processes on this machine: the same run as one, and no hang when one of them fails."""
import os
from pathlib import Path
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests import runs
from tests.forks import Forked
from vit_efficient.engine.distributed import surroundings


def start_two(workdirs, config: dict, devices: int = 1) -> list[Forked]:
    port = runs.free_port()
    return [runs.start(workdir, f"--coordinator=127.0.0.1:{port}", "--processes=2",
                       f"--process={i}", devices=devices, config=config)
            for i, workdir in enumerate(workdirs)]


def wait(processes, seconds: float = 600) -> list[int]:
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert runs.start(alone, devices=2, config=runs.PLAIN).wait() == 0
    assert wait(start_two([both, both], runs.PLAIN)) == [0, 0], \
        Path(f"{both}.log").read_text()
    assert runs.losses(both) == pytest.approx(runs.losses(alone), rel=1e-5)
    assert len(runs.losses(both)) == 22


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    config = runs.PLAIN | {"epochs": 200.0, "checkpoint.every_epochs": 0.0}
    processes = start_two([workdir, workdir], config)
    while len(runs.losses(workdir)) < 3 and all(p.poll() is None for p in processes):
        time.sleep(0.2)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert wait(processes) == [143, 143], Path(f"{workdir}.log").read_text()
    assert (workdir / "checkpoints" / str(max(runs.losses(workdir)))).is_dir()


def test_folders_that_are_not_shared_are_refused(tmp_path):
    workdirs = [tmp_path / "a", tmp_path / "b"]
    assert wait(start_two(workdirs, runs.PLAIN)) == [2, 2]
    log = Path(f"{workdirs[0]}.log").read_text()
    assert "processes [1] do not see the folder of process 0" in log


def test_an_exception_on_one_process_ends_both(tmp_path):
    code = textwrap.dedent("""
        import sys, time, jax, jax.numpy as jnp
        from jax.experimental import multihost_utils
        from vit_efficient import main
        from vit_efficient.engine import distributed
        process = int(sys.argv[1])
        distributed.start(sys.argv[2], 2, process)
        with distributed.fail_fast(lambda error: main.report(error, "")):
            multihost_utils.sync_global_devices("both are here")
            print("ready", flush=True)
            if process:
                raise KeyError("on one process")
            multihost_utils.sync_global_devices("never")
    """)
    address = f"127.0.0.1:{runs.free_port()}"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(i), address], cwd=runs.ROOT,
                                  env=runs.environment(), text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                 for i in range(2)]
    assert processes[1].wait(120) == 1
    ended = time.monotonic()
    assert processes[0].wait(60) != 0
    assert time.monotonic() - ended < 45
    output = processes[1].communicate()[0]
    assert "ready" in output and "KeyError: 'on one process'" in output


def test_a_watchdog_shows_the_stacks_of_a_stuck_process(tmp_path):
    code = textwrap.dedent("""
        import time
        from vit_efficient.engine.distributed import Watchdog
        watchdog = Watchdog(1 / 60)
        for _ in range(10):
            time.sleep(0.2)
            watchdog.pat()
        print("alive", flush=True)
        stuck = lambda: time.sleep(60)
        stuck()
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True,
                          text=True, env=runs.environment(), timeout=50)
    assert done.returncode == 1 and "alive" in done.stdout
    assert "no step was done for" in done.stderr and "in <lambda>" in done.stderr


@pytest.mark.parametrize("environ, found", [
    ({}, ""), ({"SLURM_NTASKS": "4"}, ""), ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, ""),
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, "Slurm"),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"}, "Open MPI"),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"), ({"TPU_WORKER_HOSTNAMES": "a"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, "")])
def test_surroundings(environ, found):
    assert surroundings(environ) == found


def test_open_mpi_without_a_coordinator_is_refused():
    with pytest.raises(ValueError, match="--coordinator=HOST:PORT"):
        surroundings({"OMPI_COMM_WORLD_SIZE": "2"})
