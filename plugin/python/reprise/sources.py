"""Input files as units of work: blocks of lines of JSONL, whole text files. Cut the same way for any number of workers."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from .errors import DataError

UNIT_BYTES = 512 << 10
_LINES = (".jsonl", ".ndjson")
_REFUSED = {".json": "one JSON object a line, in a file named .jsonl, is what is read",
            ".parquet": "write it as JSONL first", ".arrow": "write it as JSONL first", ".csv": "write it as JSONL first",
            ".zst": "decompress it, or compress it with gzip", ".bz2": "decompress it, or compress it with gzip",
            ".xz": "decompress it, or compress it with gzip", ".zip": "unpack it",
            ".bin": "that is indexed data already: name its prefix in data.train",
            ".idx": "that is indexed data already: name its prefix in data.train"}


@dataclass(frozen=True)
class Unit:
    """Lines of one file (`data`, beginning at line `first_line`), or text files that stay where they are."""

    paths: tuple[Path, ...]
    data: bytes | None = None
    first_line: int = 1


def _kind(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def holds_lines(path: Path) -> bool:
    return _kind(path) in _LINES


def read_source(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from None


def check_sources(paths: list[Path]) -> None:
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"no such file: {', '.join(missing)}")
    for path in paths:
        if _kind(path) in _REFUSED:
            raise DataError(f"{path}: {_kind(path)} files are not read; {_REFUSED[_kind(path)]}")


def _line_units(path: Path) -> Iterator[tuple[Unit, int]]:
    first_line, done = 1, 0
    with open(path, "rb") as raw:
        file = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
        try:
            while data := file.read(UNIT_BYTES):
                data += file.readline()
                yield Unit((path,), data, first_line), raw.tell() - done
                first_line += data.count(b"\n")
                done = raw.tell()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file ({error})") from None


def units(paths: list[Path]) -> Iterator[tuple[Unit, int]]:
    """Units in the order of the input, each with the bytes of the files that it takes."""
    texts: list[Path] = []
    size = 0
    for path in paths:
        if texts and (holds_lines(path) or size >= UNIT_BYTES):
            yield Unit(tuple(texts)), size
            texts, size = [], 0
        if holds_lines(path):
            yield from _line_units(path)
        else:
            texts.append(path)
            size += path.stat().st_size
    if texts:
        yield Unit(tuple(texts)), size
