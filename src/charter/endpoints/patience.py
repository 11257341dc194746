"""The wait before a request is sent again: pure functions of attempts and of a server's headers."""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import time
from collections.abc import Mapping

from charter.run.hashes import derive_seed


def backoff(base: float, attempt: int, share: float) -> float:
    """Seconds before repetition number ``attempt`` (from 0): base doubled each time, times 1 - share / 2."""
    return float(base * 2.0 ** min(attempt, 64) * (1 - share / 2))


def jitter(content: bytes, attempt: int) -> float:
    """A number in [0, 1) of this process, request and attempt: two requests that failed together do not return together."""
    return (derive_seed("jitter", os.getpid(), content.hex(), attempt) % 2**20) / 2.0**20


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusing server wants the client to wait; None without a readable header."""
    waits = []
    if (milliseconds := bare_number(headers.get("retry-after-ms", ""))) is not None:
        waits.append(milliseconds / 1000)
    after = headers.get("retry-after", "")
    if (seconds := bare_number(after)) is not None:
        waits.append(seconds)
    elif after:
        with contextlib.suppress(ValueError):
            waits.append(max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0))
    return max(waits) if waits else window_wait(headers, tokens=1)


def bare_number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", text) else None


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_in(text: str) -> float | None:
    """Seconds of `250ms`, `1s`, `6m0s`, `1h2m3.5s` or a bare number; None for anything else."""
    if (seconds := bare_number(text)) is not None:
        return seconds
    parts = re.findall(r"(\d{1,9}(?:\.\d*)?)(ms|s|m|h|d)", text)
    if not parts or "".join(a + b for a, b in parts) != text.strip():
        return None
    return float(sum(float(amount) * UNITS[unit] for amount, unit in parts))


def window_wait(headers: Mapping[str, str], tokens: int) -> float | None:
    """Seconds until the next window of the rate limit; None if this window leaves a request and ``tokens`` tokens."""
    waits = []
    for what, need in (("requests", 1), ("tokens", tokens)):
        remaining = headers.get(f"x-ratelimit-remaining-{what}", "").strip()
        if remaining.isdigit() and int(remaining) < need:
            wait = seconds_in(headers.get(f"x-ratelimit-reset-{what}", ""))
            waits += [] if wait is None else [wait]
    return max(waits, default=None)
