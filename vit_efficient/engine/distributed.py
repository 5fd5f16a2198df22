"""Many processes as one run: how they find each other, stop together, and end if one is gone.

`main` calls `start` and runs the job inside `fail_fast`; the training loop asks `stop_signal` at
every step and pats a `Watchdog`; checkpoints ask the first process by `from_first`. Each piece
answers one fault: a process that fails must not leave the others waiting in a collective, SIGTERM
must stop all at the same step, and a step that never ends must show where it stands.
"""
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
import faulthandler
import json
import logging
import os
from pathlib import Path
import signal
import socket
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils
import numpy as np

log = logging.getLogger(__name__)

STOPPED = 143              # exit code of a run that SIGTERM ended after a last checkpoint: 128 + 15
HEARTBEAT_SECONDS = 20     # after so long without a sign of a process the others end


def start(coordinator: str | None = None, processes: int | None = None,
          process: int | None = None) -> None:
    """Joins the run's processes: by the arguments, or as the environment says; else one process.

    Raises ValueError for an environment that does not say where process 0 is.
    """
    options = {}
    if coordinator:
        options = dict(coordinator_address=coordinator, num_processes=processes, process_id=process)
        if process == 0 and _is_local(coordinator):     # else it would listen on every interface
            options["coordinator_bind_address"] = coordinator
    elif not (found := surroundings(os.environ)):
        return
    else:
        log.info("joining the processes of this run: %s", found)
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)
    log.info("process %d of %d, %d of %d devices", jax.process_index(), jax.process_count(),
             jax.local_device_count(), jax.device_count())


def surroundings(environ: Mapping[str, str]) -> str:
    """What started several processes and tells JAX of them: "Slurm", "Open MPI", "TPU"; or "".

    Raises ValueError for Open MPI without a coordinator (version 5 names none).
    """
    if "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", 1)) > 1:
        return "Slurm"
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if not environ.keys() & {"OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS"}:
            raise ValueError("this Open MPI does not say where process 0 runs: give "
                             "--coordinator=HOST:PORT --processes=$OMPI_COMM_WORLD_SIZE "
                             "--process=$OMPI_COMM_WORLD_RANK")
        return "Open MPI"
    # A notebook's machine has TPU chips, but no metadata service that JAX could ask for the others.
    notebook = environ.keys() & {"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}
    hosts = environ.get("TPU_WORKER_HOSTNAMES")
    several = "," in hosts if hosts else _has_tpu() and not notebook
    wanted = environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return "TPU" if several and wanted else ""


@contextmanager
def fail_fast(report: Callable[[BaseException], int]) -> Iterator[None]:
    """Ends this process at once where one of several fails; the others then end too, in seconds.

    An ordinary exit would wait for the others, who wait for this one in a collective. `report`
    tells the user and returns the exit code. SystemExit passes: all processes leave together.
    """
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        code = report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """`requested(step)`: True once SIGTERM has come, on all processes at the same step.

    Inside, SIGTERM no longer ends the process; with several, jax.distributed has taken it over.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():   # Python allows no handler here
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def make_folder(workdir: Path) -> None:
    """Makes the run's folder; ValueError unless every process sees that same folder."""
    if jax.process_count() == 1:
        workdir.mkdir(parents=True, exist_ok=True)
        return
    token = workdir / f".shared-{os.getpid()}"
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        token.touch()
    name = multihost_utils.broadcast_one_to_all(np.int32(os.getpid()))
    seen = multihost_utils.process_allgather(np.bool_((workdir / f".shared-{name}").exists()))
    if jax.process_index() == 0:
        token.unlink()
    if not np.all(seen):
        blind = np.flatnonzero(~np.asarray(seen)).tolist()
        raise ValueError(f"--workdir={workdir}: processes {blind} do not see the folder of process "
                         "0; it must be one for all, on a shared disk or a mounted bucket")


def from_first(ask: Callable):
    """What `ask` returns on process 0, a JSON value, on every process; a device collective."""
    if jax.process_count() == 1:
        return ask()
    text = json.dumps(ask() if jax.process_index() == 0 else None).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(np.frombuffer(text, np.uint8), size)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))


def anywhere(error: str) -> bool:
    """True on every process where one has an error."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(error != ""))))


class Watchdog:
    """Ends the process, with every thread's stack on stderr, when nothing happens for `minutes`.

    A stuck collective is noticed by nobody else. `code` is the exit code.
    """

    code = 1

    def __init__(self, minutes: float):
        self._seconds, self._last = 60 * minutes, time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def pat(self) -> None:
        """Something has happened."""
        self._last = time.monotonic()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(self._seconds / 4, 10)):
            if time.monotonic() - self._last > self._seconds:
                print(f"error: no step was done for {self._seconds / 60:g} minutes "
                      f"(log.watchdog_minutes); what every thread is doing:", file=sys.stderr)
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
                os._exit(self.code)


def _is_local(address: str) -> bool:
    """True where this machine can listen on the address's host."""
    try:
        with socket.socket() as probe:
            probe.bind((address.rpartition(":")[0], 0))
        return True
    except OSError:
        return False


def _has_tpu() -> bool:
    return os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
