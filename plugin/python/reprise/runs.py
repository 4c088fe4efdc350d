"""Run folders, model folders and replay stores as Python values: what reports and comparisons are made of."""

from __future__ import annotations

import json
import math
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Iterator

import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPIKE_WINDOW = 20


@dataclass
class Run:
    """A folder that `reprise train` wrote: the resolved run file, metrics by step, evaluations, and what was added."""

    folder: Path
    config: dict
    steps: list[dict] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    results: dict = field(default_factory=dict)

    @staticmethod
    def read(folder: str | Path) -> "Run":
        folder = Path(folder)
        run_file, metrics = folder / "run.toml", folder / "metrics.jsonl"
        for file in (run_file, metrics):
            if not file.is_file():
                raise ValueError(f"{folder} is not a run folder: {file.name} is missing")
        run = Run(folder, tomllib.loads(run_file.read_text()))
        for number, line in enumerate(metrics.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{metrics}:{number}: not JSON ({error})") from None
            if "schema" in record:
                if record["schema"] != 1:
                    raise ValueError(f"{metrics}: schema {record['schema']} is newer than this report")
            elif "eval" in record:
                run.evaluations.append(record)
            else:
                run.steps.append(record)
        results = folder / "results.json"
        if results.is_file():
            run.results = json.loads(results.read_text())
        return run

    @property
    def normalization(self) -> str:
        return self.config["replay"]["normalization"]

    @property
    def optimizer(self) -> str:
        return self.config["optimizer"]["name"]

    @property
    def label(self) -> str:
        replay, optimizer = self.config["replay"], self.config["optimizer"]
        head = replay["normalization"]
        if head == "tile":
            head += f" {replay['tile_tokens']}"
            if replay["negatives"]:
                head += f" + {replay['negatives']}"
        name = {"adamw": "AdamW", "moclip": "MoClip"}[optimizer["name"]]
        if optimizer["name"] == "moclip" and optimizer["angle_scope"] != "tensor":
            name += f" ({optimizer['angle_scope']})"
        return f"{head} · {name}"

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric where it was measured."""
        pairs = [(s["step"], s[key]) for s in self.steps if key in s and s[key] is not None]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def evaluation(self, prefix: str) -> tuple[list[int], list[float]]:
        pairs = [(e["step"], e["loss"]) for e in self.evaluations if e["eval"] == prefix]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def median_of(self, key: str) -> float | None:
        values = self.series(key)[1]
        return median(values) if values else None

    def mean_of(self, key: str) -> float | None:
        values = self.series(key)[1]
        return sum(values) / len(values) if values else None

    def last_of(self, key: str) -> float | None:
        values = self.series(key)[1]
        return values[-1] if values else None

    def loss_stability(self) -> tuple[float | None, int]:
        """(variance of the loss around the mean of the SPIKE_WINDOW steps before it, number of spikes): a spike lies
        more than three standard deviations of those steps above their mean."""
        losses = self.series("loss")[1]
        residuals, spikes = [], 0
        for i in range(SPIKE_WINDOW, len(losses)):
            before = losses[i - SPIKE_WINDOW : i]
            mean = sum(before) / SPIKE_WINDOW
            deviation = math.sqrt(sum((x - mean) ** 2 for x in before) / SPIKE_WINDOW)
            residuals.append(losses[i] - mean)
            spikes += int(losses[i] > mean + 3.0 * deviation)
        if not residuals:
            return None, 0
        return sum(r * r for r in residuals) / len(residuals), spikes


@dataclass
class Store:
    """The manifest of a replay store."""

    folder: Path
    manifest: dict

    @staticmethod
    def read(folder: str | Path) -> "Store":
        file = Path(folder) / "manifest.json"
        if not file.is_file():
            raise ValueError(f"{folder} is not a finished replay store: manifest.json is missing")
        return Store(Path(folder), json.loads(file.read_text()))

    @property
    def statistics(self) -> dict:
        return self.manifest["statistics"]

    @property
    def bytes_per_token(self) -> float:
        shards = self.manifest["shards"]
        tokens = sum(s["tokens"] for s in shards)
        return sum(s["bytes"] for s in shards) / tokens if tokens else 0.0

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["provenance"]["vocab_size"])


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson, JASA 1927)."""
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def read_tensors(file: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 values) of every F32 or BF16 tensor of a safetensors file."""
    with open(file, "rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
        begin = 8 + size
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            stream.seek(begin + first)
            raw = stream.read(last - first)
            if entry["dtype"] == "F32":
                values = np.frombuffer(raw, np.float32)
            elif entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                raise ValueError(f"{file}: {name} is {entry['dtype']}; F32 or BF16 is wanted")
            yield name, values.reshape(entry["shape"])


def relative_distance(model: str | Path, base: str | Path) -> float:
    """||theta - theta_base||_2 / ||theta_base||_2 over all tensors of two Hugging Face folders."""

    def tensors(folder: str | Path) -> dict[str, np.ndarray]:
        return {n: v for f in sorted(Path(folder).glob("*.safetensors")) for n, v in read_tensors(f)}

    ours, reference = tensors(model), tensors(base)
    if ours.keys() != reference.keys():
        raise ValueError(f"{model} and {base} hold different tensors")
    difference = sum(float(np.sum((ours[n].astype(np.float64) - reference[n]) ** 2)) for n in ours)
    norm = sum(float(np.sum(reference[n].astype(np.float64) ** 2)) for n in reference)
    return math.sqrt(difference / norm)
