"""Megatron's indexed dataset: `<prefix>.bin` (tokens), `<prefix>.idx` (where documents lie), `<prefix>.mask.bin`.

Layout of .idx, little-endian, without padding: magic b"MMIDIDX\\0\\0", uint64 version 1, uint8 dtype code, uint64 number
of sequences N, uint64 number of document indices D = documents + 1, int32 lengths[N], int64 byte pointers[N], int64
document indices[D]. (Megatron-LM core/datasets/indexed_dataset.py.)
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
DTYPE_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


class IndexedDatasetWriter:
    """Writes one document a call, as a context; files appear under their names only when it ends without an exception."""

    def __init__(self, prefix: str | Path, vocab_size: int):
        self.prefix = Path(prefix)
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self.code = 8 if vocab_size < 65500 else 4
        self.dtype = np.dtype(DTYPE_CODES[self.code])
        self._bin = open(self._temporary(".bin"), "wb")
        self._mask = open(self._temporary(".mask.bin"), "wb")
        self.lengths: list[int] = []

    def _temporary(self, suffix: str) -> str:
        return f"{self.prefix}{suffix}.part"

    def add(self, tokens: list[int], mask: list[int]) -> None:
        """tokens: ids of one document; mask: same length, 1 = train on predicting this token."""
        if len(tokens) != len(mask):
            raise ValueError(f"{len(tokens)} tokens with a mask of {len(mask)}")
        self._bin.write(np.asarray(tokens, self.dtype).tobytes())
        self._mask.write(np.asarray(mask, np.uint8).tobytes())
        self.lengths.append(len(tokens))

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self._finish()
            return
        for file in (self._bin, self._mask):
            file.close()
        for suffix in (".bin", ".mask.bin", ".idx"):
            Path(self._temporary(suffix)).unlink(missing_ok=True)

    def _finish(self) -> None:
        lengths = np.asarray(self.lengths, np.int32)
        pointers = np.zeros(len(lengths), np.int64)
        if len(lengths):
            pointers[1:] = np.cumsum(lengths[:-1], dtype=np.int64) * self.dtype.itemsize
        with open(self._temporary(".idx"), "wb") as index:
            index.write(MAGIC + struct.pack("<QBQQ", 1, self.code, len(lengths), len(lengths) + 1))
            index.write(lengths.tobytes() + pointers.tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
            index.flush()
            os.fsync(index.fileno())
        for file in (self._bin, self._mask):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for suffix in (".bin", ".mask.bin", ".idx"):
            os.replace(self._temporary(suffix), f"{self.prefix}{suffix}")


def read_documents(prefix: str | Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of every document; for tests and inspection of small sets."""
    raw = Path(f"{prefix}.idx").read_bytes()
    if raw[:9] != MAGIC:
        raise ValueError(f"{prefix}.idx is not an indexed dataset")
    _, code, sequences, documents = struct.unpack("<QBQQ", raw[9:34])
    lengths = np.frombuffer(raw, np.int32, sequences, 34)
    pointers = np.frombuffer(raw, np.int64, sequences, 34 + 4 * sequences)
    ends = np.frombuffer(raw, np.int64, documents, 34 + 12 * sequences)
    dtype = np.dtype(DTYPE_CODES[code])
    tokens = np.fromfile(f"{prefix}.bin", dtype)
    mask_file = Path(f"{prefix}.mask.bin")
    mask = np.fromfile(mask_file, np.uint8) if mask_file.exists() else None
    result = []
    for first, last in zip(ends[:-1], ends[1:]):
        begin = int(pointers[first]) // dtype.itemsize if last > first else 0
        end = begin + int(lengths[first:last].sum())
        own = mask[begin:end] if mask is not None else np.r_[np.uint8(0), np.ones(max(end - begin - 1, 0), np.uint8)]
        result.append((tokens[begin:end], own))
    return result
