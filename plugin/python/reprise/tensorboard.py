"""python -m reprise tensorboard: the metrics of run folders as TensorBoard event files.

Every number of metrics.jsonl becomes a scalar: `train/loss`, `train/lr`, ..., `eval/<data>/loss`. One sub-folder of --out per run,
written anew each time. Neither tensorboard nor tensorflow is needed to write them; `tensorboard --logdir DIR` shows them.
Metrics hold durations and no clock, so times are reckoned back from the last change of the file.
"""

from __future__ import annotations

import argparse
import os
import struct
from pathlib import Path
from typing import BinaryIO, Iterator

from .errors import DataError
from .runs import Run


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC with Castagnoli's polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    """As TFRecord files store checksums: rotated by 15 bits, a constant added."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# ---- protobuf on the wire ----------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are sent as 64-bit two's complement
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(number: int, wire_type: int, payload: bytes) -> bytes:
    length = _varint(len(payload)) if wire_type == 2 else b""
    return _varint(number << 3 | wire_type) + length + payload


def _event(wall_time: float, step: int, what: bytes) -> bytes:
    """Event { double wall_time = 1; int64 step = 2; string file_version = 3 | Summary summary = 5 }"""
    return _field(1, 1, struct.pack("<d", wall_time)) + _field(2, 0, _varint(step)) + what


def _summary(scalars: dict[str, float]) -> bytes:
    """Summary { repeated Value value = 1 }, Value { string tag = 1; float simple_value = 2 }"""
    values = (_field(1, 2, tag.encode()) + _field(2, 5, struct.pack("<f", value)) for tag, value in scalars.items())
    return _field(5, 2, b"".join(_field(1, 2, value) for value in values))


def write_record(file: BinaryIO, data: bytes) -> None:
    length = struct.pack("<Q", len(data))
    file.write(length + _masked_crc(length) + data + _masked_crc(data))


# ---- runs --------------------------------------------------------------------------------------------------------------


def _scalars(record: dict, prefix: str) -> dict[str, float]:
    found = {}
    for key, value in record.items():
        if isinstance(value, (bool, int, float)) and key != "step":
            found[f"{prefix}/{key}"] = float(value)
        elif isinstance(value, list):
            found |= {f"{prefix}/{key}/{i}": float(item) for i, item in enumerate(value) if isinstance(item, (int, float))}
    return found


def events(run: Run, end: float) -> Iterator[tuple[float, int, dict[str, float]]]:
    """(time, step, scalars) in the order of steps; the last step took place at time `end`."""
    durations = {record["step"]: (record.get("step_ms") or 0.0) / 1e3 for record in run.steps}
    time, times = end - sum(durations.values()), {0: end - sum(durations.values())}
    for step in sorted(durations):
        time += durations[step]
        times[step] = time
    for record in run.steps:
        yield times[record["step"]], record["step"], _scalars(record, "train")
    for record in run.evaluations:
        yield times.get(record["step"], end), record["step"], _scalars(record, f"eval/{Path(record['eval']).name}")


def export(folder: Path, out: Path) -> Path:
    """Writes the event file of one run and returns its path. Throws ValueError for a folder that is no run."""
    run = Run.read(folder)
    end = (folder / "metrics.jsonl").stat().st_mtime
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"events.out.tfevents.{int(end)}.reprise"
    part = file.with_name(f".{file.name}.part")
    with open(part, "wb") as stream:
        write_record(stream, _event(end, 0, _field(3, 2, b"brain.Event:2")))
        for time, step, scalars in events(run, end):
            write_record(stream, _event(time, step, _summary(scalars)))
    for earlier in out.glob("events.out.tfevents.*.reprise"):
        earlier.unlink()
    os.replace(part, file)
    return file


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("tensorboard", help="metrics of runs to TensorBoard event files", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that `reprise train` wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    names = [folder.resolve().name for folder in options.runs]
    if len(set(names)) < len(names):
        raise DataError("two runs have folders of the same name: export them one by one, each with its own --out")
    for folder, name in zip(options.runs, names):
        try:
            file = export(folder, options.out / name)
        except ValueError as error:
            raise DataError(str(error)) from None
        print(f"{file}: {file.stat().st_size:,} bytes")
    print(f"tensorboard --logdir {options.out}")
    return 0
