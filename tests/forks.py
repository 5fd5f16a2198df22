"""Commands without the seconds of their imports: a process that has imported everything forks.

    python -m tests.forks FD                          # what `start` runs once

No JAX backend has started when it forks, so the command's own environment counts, as XLA_FLAGS; it
has its own process id, and answers signals as the command from a shell does.
"""
from collections.abc import Sequence
from functools import cache
import importlib
import json
import os
from pathlib import Path
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys

ROOT = Path(__file__).parents[1]
LAZY = ("jax.experimental.multihost_utils", "matplotlib.figure", "sklearn.datasets", "tensorboardX")


class Forked:
    """A command that runs in a fork; its members are those of `subprocess.Popen`."""

    def __init__(self, news: socket.socket):
        self._news = news
        self.returncode: int | None = None
        self.pid = int(self._line())

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None and select.select([self._news], [], [], 0)[0]:
            self.returncode = int(self._line())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None and not select.select([self._news], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.poll()

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            assert (more := self._news.recv(1)), "the process that forks is gone"
            line += more
        return line


def start(module: str, arguments: Sequence[str], env: dict[str, str], log: str | Path) -> Forked:
    """`python -m MODULE ARGUMENTS` in the repository, its output appended to `log`."""
    ours, theirs = socket.socketpair()
    request = json.dumps([module, list(arguments), env, str(log)]).encode()
    socket.send_fds(_server(), [len(request).to_bytes(4, "big")], [theirs.fileno()])
    _server().sendall(request)
    theirs.close()
    return Forked(ours)


@cache
def _server() -> socket.socket:
    """The way to the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair()
    # OpenBLAS would start its threads at once.
    env = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    subprocess.Popen([sys.executable, "-m", "tests.forks", str(theirs.fileno())], cwd=ROOT,
                     pass_fds=[theirs.fileno()], env=env)
    theirs.close()
    return ours


def serve(requests: socket.socket) -> None:
    """Forks for every request, until nobody is left who could send one."""
    import vit_efficient
    modules = pkgutil.walk_packages(vit_efficient.__path__, "vit_efficient.")
    for name in (*(m.name for m in modules if m.name != "vit_efficient.main"), *LAZY):
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1
    assert threads == 1, f"{threads} threads: a fork has only one of them"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)            # leaves no zombies
    while (head := socket.recv_fds(requests, 4, 1))[0]:
        request = b""
        while len(request) < int.from_bytes(head[0], "big"):
            request += requests.recv(65536)
        news = socket.socket(fileno=head[1][0])
        if not os.fork():
            requests.close()
            follow(news, *json.loads(request))
        news.close()


def follow(news: socket.socket, module: str, arguments: list[str], env: dict[str, str],
           log: str) -> None:
    """Runs the command in a fork of its own; tells its process id, then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        news.sendall(b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        news.sendall(b"%d\n" % code)
        os._exit(0)
    news.close()
    os.environ.clear()
    os.environ.update(env)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
