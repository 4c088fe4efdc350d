"""<prefix>.json: what indexed data was made from. Written last, so that a prefix with it is whole; the same inputs need not be
encoded again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

from . import __version__
from .encode import EncodeOptions, Statistics
from .errors import DataError
from .hashing import file_sha256, text_sha256
from .tokenizer import read_json

_ENCODING = 2  # goes up whenever the same inputs give other documents than before
SUFFIXES = (".bin", ".idx", ".mask.bin", ".weight.bin")


class Sources:
    """Input files with their hashes; a file of unchanged path, size and time keeps the hash that earlier facts have of it."""

    def __init__(self, paths: list[Path], earlier: dict):
        known = {}
        for entry in earlier.get("sources", []):
            known[entry.get("path"), entry.get("bytes"), entry.get("mtime_ns")] = entry.get("sha256")
        self.entries = []
        for path in paths:
            status = path.stat()
            full = str(path.resolve())
            sha256 = known.get((full, status.st_size, status.st_mtime_ns)) or file_sha256(path)
            self.entries.append({"file": path.name, "path": full, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns,
                                 "sha256": sha256})

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.entries)


def path_of(prefix: Path) -> Path:
    return Path(f"{prefix}.json")


def read(prefix: Path) -> dict:
    """The facts of an earlier run, or nothing. Throws DataError for a file of that name that holds something else."""
    path = path_of(prefix)
    content = read_json(path)
    if path.exists() and content.get("format") != "reprise-data":
        raise DataError(f"{path} is in the way and was not written by prepare: choose another --out")
    return content


def inputs(sources: Sources, tokenizer_folder: Path, options: EncodeOptions) -> dict:
    """All that decides the output, and nothing else."""
    identity = asdict(options) | {"end_tokens": list(options.end_tokens)}
    identity["templates"] = {name: text_sha256(text) for name, text in options.templates.items()}
    tokenizer = {}
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"):
        if (tokenizer_folder / name).is_file():
            tokenizer[name] = file_sha256(tokenizer_folder / name)
    return {"encoding": _ENCODING, "tokenizer": tokenizer, "options": identity,
            "sources": [[entry["file"], entry["sha256"]] for entry in sources.entries]}


def output_sizes(prefix: Path) -> dict[str, int]:
    return {suffix: os.path.getsize(f"{prefix}{suffix}") for suffix in SUFFIXES if os.path.exists(f"{prefix}{suffix}")}


def still_holds(prefix: Path, earlier: dict, wanted: dict) -> bool:
    """Whether the files of the prefix are what `wanted` would give."""
    counted = {item.name for item in fields(Statistics)}
    return (earlier.get("inputs") == wanted and earlier.get("outputs") == output_sizes(prefix)
            and set(earlier.get("statistics", {})) == counted)


def write(prefix: Path, sources: Sources, wanted: dict, options: EncodeOptions, *, vocab_size: int, eos: int,
          tokenizer_sha256: str, statistics: Statistics) -> None:
    template = options.templates.get("default")
    content = {"format": "reprise-data", "version": 1, "made_by": f"reprise {__version__}", "vocab_size": vocab_size,
               "eos_token_id": eos, "tokenizer_sha256": tokenizer_sha256, "template": template, "sources": sources.entries,
               "statistics": asdict(statistics), "inputs": wanted, "outputs": output_sizes(prefix)}
    part = Path(f"{prefix}.json.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path_of(prefix))
