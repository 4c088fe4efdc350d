"""Megatron's indexed dataset: `<prefix>.bin` (tokens), `<prefix>.idx` (where documents lie), and beside them reprise's
`<prefix>.mask.bin` (uint8 per token, 1 = train on predicting it) and `<prefix>.weight.bin` (float32 per token).

Tokens are ids below a vocabulary's size and nothing else: text, audio codes, image patches. `write_indexed_dataset` makes a
dataset from arrays in one call, `IndexedDatasetWriter` document by document.

Layout of .idx, little-endian, without padding: magic b"MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64 number
of sequences N, uint64 number of document indices D = documents + 1, int32 lengths[N], int64 byte pointers[N], int64
document indices[D]. (Megatron-LM core/datasets/indexed_dataset.py.)
"""

from __future__ import annotations

import fcntl
import os
import struct
from array import array
from pathlib import Path
from typing import BinaryIO, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
DTYPE_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_SUFFIXES = (".bin", ".mask.bin", ".weight.bin", ".idx")  # the index last: a prefix without it is no dataset


class IndexedDatasetWriter:
    """Writes documents in order, as a context; the files get their names only when it ends without an exception. Files that
    an earlier dataset had under the prefix and this one has not (weights) are removed. One writer a prefix at a time."""

    def __init__(self, prefix: str | Path, vocab_size: int):
        if not 0 < vocab_size <= 1 << 31:
            raise ValueError(f"vocab_size = {vocab_size}: must lie in [1, 2^31]")
        self.prefix = Path(prefix)
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self.vocab_size = vocab_size
        self.code = 8 if vocab_size < 65500 else 4  # as Megatron chooses
        self.dtype = np.dtype(DTYPE_CODES[self.code])
        self._lengths = array("i")
        self._tokens = 0
        self._files: dict[str, BinaryIO] = {".bin": self._open_locked()}

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def _part(self, suffix: str) -> Path:
        return Path(f"{self.prefix}{suffix}.part")

    def _open_locked(self) -> BinaryIO:
        file = open(self._part(".bin"), "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise DataError(f"{self.prefix} is being written by another process") from None
        file.truncate(0)
        return file

    def _optional(self, suffix: str, values: np.ndarray | None, count: int, default: np.ndarray) -> None:
        """Appends to a file that exists only once a document has needed it; the others have the default."""
        if values is None and suffix not in self._files:
            return
        if suffix not in self._files:
            self._files[suffix] = open(self._part(suffix), "wb")
            self._fill(suffix, default)
        if values is None:
            values = np.full(count, default)
        self._files[suffix].write(values.tobytes())

    def _fill(self, suffix: str, default: np.ndarray) -> None:
        """What documents written before have: the default; in a mask 0 for the first token of each, which nothing predicts."""
        for begin in range(0, len(self._lengths), 4096):
            lengths = np.frombuffer(self._lengths, np.int32)[begin : begin + 4096]
            values = np.full(int(lengths.sum()), default)
            if suffix == ".mask.bin":
                starts = np.cumsum(lengths) - lengths
                values[starts[lengths > 0]] = 0
            self._files[suffix].write(values.tobytes())

    def add(self, tokens: ArrayLike, mask: ArrayLike | None = None, weight: float | ArrayLike | None = None) -> None:
        """One document. tokens: ids, one-dimensional. mask: as long, 1 = train on predicting this token; None = all but the
        first. weight: one number, or one per token; None = 1. Throws ValueError for what does not fit."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"document {self.documents}: tokens have the shape {tokens.shape}; flatten them to one dimension first")
        weights = None if weight is None else np.broadcast_to(np.asarray(weight, np.float32), tokens.shape)
        if mask is None and ".mask.bin" in self._files:
            mask = _default_mask(len(tokens))
        self._append(tokens, np.asarray([len(tokens)], np.int32), mask, weights)

    def add_many(self, tokens: np.ndarray, lengths: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> None:
        """Documents one behind the other: tokens and mask per token, lengths and weights per document."""
        per_token = None if (weights == 1).all() else np.repeat(weights.astype(np.float32), lengths)
        self._append(tokens, lengths, mask, per_token)

    def _append(self, tokens: np.ndarray, lengths: np.ndarray, mask: ArrayLike | None, weights: np.ndarray | None) -> None:
        where = f"document {self.documents}" + ("" if len(lengths) == 1 else " and following")
        if tokens.size and (tokens.dtype.kind not in "iu" or int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size):
            raise ValueError(f"{where}: tokens must be integers in [0, {self.vocab_size}); these are {tokens.dtype} in "
                             f"[{tokens.min()}, {tokens.max()}]")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != tokens.shape or not np.isin(mask, (0, 1)).all():
                raise ValueError(f"{where}: {len(tokens)} tokens want as many 0s and 1s as mask; it has the shape {mask.shape}")
            mask = mask.astype(np.uint8)
        if weights is not None and not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"{where}: weights must be finite and not negative")
        self._files[".bin"].write(tokens.astype(self.dtype).tobytes())
        self._optional(".mask.bin", mask, len(tokens), np.uint8(1))
        self._optional(".weight.bin", weights, len(tokens), np.float32(1))
        self._lengths.frombytes(np.asarray(lengths, np.int32).tobytes())

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                file.close()
            for suffix in _SUFFIXES:
                self._part(suffix).unlink(missing_ok=True)

    def _finish(self) -> None:
        lengths = np.frombuffer(self._lengths, np.int32)
        pointers = np.zeros(len(lengths), np.int64)
        if len(lengths):
            pointers[1:] = np.cumsum(lengths[:-1], dtype=np.int64) * self.dtype.itemsize
        self._files[".idx"] = open(self._part(".idx"), "wb")
        self._files[".idx"].write(MAGIC + struct.pack("<QBQQ", 1, self.code, len(lengths), len(lengths) + 1))
        for values in (lengths, pointers, np.arange(len(lengths) + 1, dtype=np.int64)):
            self._files[".idx"].write(values.tobytes())
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        Path(f"{self.prefix}.idx").unlink(missing_ok=True)
        for suffix in _SUFFIXES:
            final = Path(f"{self.prefix}{suffix}")
            if suffix in self._files:
                os.replace(self._part(suffix), final)
            else:
                final.unlink(missing_ok=True)
        folder = os.open(self.prefix.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def write_indexed_dataset(prefix: str | Path, documents: Iterable[ArrayLike], vocab_size: int, *,
                          masks: Sequence[ArrayLike] | None = None,
                          weights: Sequence[float | ArrayLike] | None = None) -> int:
    """Writes arrays of ids as a dataset and returns how many documents it has. masks and weights: one entry per document, as
    IndexedDatasetWriter.add takes them. Any codebook will do: vocab_size is that of the model that is to be trained."""
    with IndexedDatasetWriter(prefix, vocab_size) as writer:
        for i, tokens in enumerate(documents):
            writer.add(tokens, None if masks is None else masks[i], None if weights is None else weights[i])
        return writer.documents


def _default_mask(length: int) -> np.ndarray:
    """All but the first token, which nothing predicts."""
    mask = np.ones(length, np.uint8)
    mask[:1] = 0
    return mask


def read_documents(prefix: str | Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of every document; for tests and inspection of small sets."""
    lengths, tokens = _read_tokens(Path(prefix))
    mask_file = Path(f"{prefix}.mask.bin")
    mask = np.fromfile(mask_file, np.uint8) if mask_file.exists() else None
    result = []
    for begin, end in lengths:
        result.append((tokens[begin:end], mask[begin:end] if mask is not None else _default_mask(end - begin)))
    return result


def read_weights(prefix: str | Path) -> list[np.ndarray] | None:
    """The weights of every document's tokens; None where all are 1."""
    file = Path(f"{prefix}.weight.bin")
    if not file.exists():
        return None
    weights = np.fromfile(file, np.float32)
    return [weights[begin:end] for begin, end in _read_tokens(Path(prefix))[0]]


def _read_tokens(prefix: Path) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Where each document lies, in tokens, and all tokens."""
    raw = Path(f"{prefix}.idx").read_bytes()
    if raw[:9] != MAGIC:
        raise ValueError(f"{prefix}.idx is not an indexed dataset")
    _, code, sequences, documents = struct.unpack("<QBQQ", raw[9:34])
    lengths = np.frombuffer(raw, np.int32, sequences, 34)
    pointers = np.frombuffer(raw, np.int64, sequences, 34 + 4 * sequences)
    ends = np.frombuffer(raw, np.int64, documents, 34 + 12 * sequences)
    dtype = np.dtype(DTYPE_CODES[code])
    places = []
    for first, last in zip(ends[:-1], ends[1:]):
        begin = int(pointers[first]) // dtype.itemsize if last > first else 0
        places.append((begin, begin + int(lengths[first:last].sum())))
    return places, np.fromfile(f"{prefix}.bin", dtype)
