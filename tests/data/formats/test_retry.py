"""Reading again: what is worth it, how often, and what the error says in the end."""
import errno

import pytest

from vit_efficient.data.formats import retry


@pytest.fixture
def slept(monkeypatch):
    waits = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    return waits


def failing(error: OSError, times: int):
    left = [error] * times

    def read():
        if left:
            raise left.pop()
        return "bytes"
    return read


@pytest.mark.parametrize("times", [0, 1, 3])
def test_transient_errors_are_read_over(slept, times):
    assert retry.patiently(failing(OSError(errno.EIO, "I/O error"), times), "x") == "bytes"
    assert slept == list(retry.WAITS[:times])


def test_an_error_that_stays_names_the_file(slept):
    with pytest.raises(OSError, match="some/x.jpg: cannot be read .*Stale"):
        retry.patiently(failing(OSError(errno.ESTALE, "Stale file handle"), 9), "some/x.jpg")
    assert slept == list(retry.WAITS)


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError])
def test_a_missing_file_is_not_waited_for(slept, kind):
    with pytest.raises(OSError, match="some/x.jpg: cannot be read"):
        retry.patiently(failing(kind("gone"), 1), "some/x.jpg")
    assert not slept


def test_other_errors_pass(slept):
    with pytest.raises(ValueError, match="a bad image"):
        retry.patiently(failing(ValueError("a bad image"), 1), "x")
    assert not slept
