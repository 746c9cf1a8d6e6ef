"""Storage that stumbles: what may pass is tried again, later and later; what will not is told at once."""

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 8
# The pauses double up to the longest: a minute in all, or half of one by the jitter.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

_PASSING_ERRNOS = (
    *("EAGAIN", "EBUSY", "EINTR", "ESTALE", "EREMOTEIO", "EPIPE", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED"),
    *("ECONNABORTED", "EHOSTUNREACH", "EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ENETRESET"),
)
_PASSING = {getattr(errno, name) for name in _PASSING_ERRNOS if hasattr(errno, name)}
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# Of clients of object stores whose errors have neither a number nor a builtin type (aiohttp, google.auth).
_PASSING_NAMES = {"ServerDisconnectedError", "ClientPayloadError", "ServerTimeoutError", "TransportError", "RetryError"}
_PASSING_WORDS = re.compile(r"\b(408|429|500|502|503|504)\b|timed? ?out|unavailable|temporar|connection reset", re.I)


def passes(error: BaseException) -> bool:
    """Whether what failed may succeed later: a lost connection, a time-out, a server that is overloaded."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    for name in ("code", "status", "status_code"):
        status = getattr(error, name, None)
        if isinstance(status, int | str) and str(status).isdigit():
            return int(status) in _PASSING_STATUS
    if type(error).__name__ in _PASSING_NAMES:
        return True
    if isinstance(error, OSError):
        if error.errno is not None:
            return error.errno in _PASSING
        return not isinstance(error, PermissionError | FileNotFoundError) and bool(_PASSING_WORDS.search(str(error)))
    return False


def patiently(call: Callable[[], T], sleep: Callable[[float], None] | None = None) -> T:
    """`call()`, again after a pause while it fails in a way that may pass. The last error comes out as it is."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:
            if attempt + 1 == ATTEMPTS or not passes(error):
                raise
        # Jitter: many machines that a server has turned away must not come back at once.
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
        (sleep or time.sleep)(pause * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")
