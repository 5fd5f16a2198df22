"""Reads again what a disk or a network failed to give."""
from collections.abc import Callable
import logging
import time
from typing import TypeVar

log = logging.getLogger(__name__)


WAITS = (0.1, 0.5, 2.0)                                   # seconds before each further try
# What waiting does not mend.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


def patiently(read: Callable[[], T], name: str) -> T:
    """What `read()` returns, tried again after an OSError, which a shared disk gives now and then.

    Raises OSError, with `name`, after the last of `WAITS`, and at once for a file that is missing
    or forbidden.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except OSError as error:
            if wait is None or isinstance(error, _LASTING):
                raise OSError(f"{name}: cannot be read ({error})") from error
            log.warning("%s: %s; reading it again in %g s", name, error, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")
