from __future__ import annotations

import sys
import time
from typing import TextIO


def format_time(seconds: float) -> str:
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60}:{seconds % 60:02d} min" if seconds < 3600 else f"{seconds // 3600}:{seconds // 60 % 60:02d} h"


class Progress:
    """Bytes read, rate and time left: a bar on a terminal, elsewhere a line every `interval` seconds."""

    def __init__(self, total_bytes: int, *, quiet: bool = False, interval: float = 10.0, stream: TextIO | None = None):
        self._total = max(1, total_bytes)
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty()
        self._interval = 0.1 if self._bar else interval
        self._begin = self._last = time.monotonic()
        self._shown = False

    def update(self, done_bytes: int, tokens: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._last < self._interval:
            return
        self._last = now
        elapsed = now - self._begin
        share = min(1.0, done_bytes / self._total)
        left = format_time(elapsed * (1 - share) / share) if share > 0 else "?"
        text = (f"{100 * share:3.0f} %  {done_bytes / 1e6:,.0f} of {self._total / 1e6:,.0f} MB  {tokens:,} tokens  "
                f"{done_bytes / 1e6 / elapsed:.1f} MB/s  {tokens / 1e3 / elapsed:,.0f} K tokens/s  {left} left")
        if self._bar:
            filled = int(20 * share)
            self._stream.write(f"\r[{'=' * filled}{' ' * (20 - filled)}] {text}\033[K")
        else:
            self._stream.write(f"prepare: {text}\n")
        self._stream.flush()
        self._shown = True

    def finish(self) -> None:
        """Clears the bar."""
        if self._shown and self._bar:
            self._stream.write("\r\033[K")
            self._stream.flush()
