"""Units of work to blocks of documents, in this process or in several, in the order of the input."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import numpy as np

from .encode import Document, EncodeOptions, Encoder, Statistics
from .errors import DataError
from .sources import Unit, holds_lines, read_source
from .tokenizer import Tokenizer


@dataclass
class Block:
    """Documents of one unit one behind the other, and what was counted on the way."""

    tokens: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray  # one per document
    statistics: Statistics
    error: str = ""  # the first line that cannot be used; what lies behind it was not looked at


@dataclass
class _Draft:
    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, document: Document) -> None:
        self.tokens += document.tokens
        self.mask += document.mask
        self.lengths.append(len(document.tokens))
        self.weights.append(document.weight)


class UnitEncoder:
    def __init__(self, folder: Path, options: EncodeOptions, now: datetime.datetime):
        self._encoder = Encoder(Tokenizer(folder), options, now)

    def __call__(self, unit: Unit) -> Block:
        encoder, draft, error = self._encoder, _Draft(), ""
        encoder.statistics = Statistics()
        try:
            for documents in self._lines(unit) if unit.data is not None else map(self._text, unit.paths):
                for document in documents:
                    if encoder.keep(document):
                        draft.add(document)
        except DataError as problem:
            error = str(problem)
        return Block(np.asarray(draft.tokens, np.int32), np.asarray(draft.mask, np.uint8), np.asarray(draft.lengths, np.int32),
                     np.asarray(draft.weights, np.float32), encoder.statistics, error)

    def _text(self, path: Path) -> list[Document]:
        text = read_source(path).decode("utf-8", errors="replace").replace("\r\n", "\n")
        self._encoder.statistics.invalid_utf8 += int("\ufffd" in text)
        return self._encoder.text(text)

    def _lines(self, unit: Unit) -> Iterator[list[Document]]:
        for number, raw in enumerate(unit.data.split(b"\n"), unit.first_line):
            try:
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    self._encoder.statistics.invalid_utf8 += 1
                    raise DataError(f"not UTF-8 (byte {error.start} of the line)") from None
                if line.strip():
                    yield self._encoder.line(line)
            except DataError as error:
                message = f"{unit.paths[0]}:{number}: {error}"
                if not self._encoder.options.skip_bad:
                    raise DataError(message) from None
                self._encoder.statistics.bad_lines += 1
                self._encoder.statistics.note("bad_lines", message)


_unit_encoder: UnitEncoder | None = None  # of a worker process


def _start_worker(folder: Path, options: EncodeOptions, now: datetime.datetime) -> None:
    global _unit_encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # also when the parent was killed
    _unit_encoder = UnitEncoder(folder, options, now)


def _work(unit: Unit) -> Block:
    return _unit_encoder(unit)


def blocks(units: Iterator[tuple[Unit, int]], workers: int, folder: Path, options: EncodeOptions,
           now: datetime.datetime) -> Iterator[tuple[Block, int]]:
    """The block of each unit, in order, with the bytes it took. At most 2 units a worker are held."""
    if workers == 1:
        encode = UnitEncoder(folder, options, now)
        for unit, size in units:
            yield encode(unit), size
        return
    # Fresh processes: a fork would copy the threads' locks of the libraries that are loaded.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (folder, options, now))
    pending: deque[tuple[Future, int]] = deque()
    try:
        for unit, size in units:
            pending.append((pool.submit(_work, unit), size))
            if len(pending) >= 2 * workers:
                future, taken = pending.popleft()
                yield future.result(), taken
        for future, taken in pending:
            yield future.result(), taken
    except BrokenProcessPool:
        raise DataError("a worker process ended unexpectedly, perhaps for want of memory: try fewer --workers") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
