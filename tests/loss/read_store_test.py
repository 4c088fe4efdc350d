"""The replay store read without reprise: read_store_test.py PROGRAM, which writes a store and prints what is in it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np


def records(folder):  # the reader that docs/formats.md shows
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        with h5py.File(folder / shard["file"], "r") as file:
            data = {name: dataset[:] for name, dataset in file.items()}
        for s, sample in enumerate(data["sample_id"]):
            for t in range(data["token_ptr"][s], data["token_ptr"][s + 1]):
                begin, end = data["id_ptr"][t], data["id_ptr"][t + 1]
                ids = np.cumsum(data["gap"][begin:end], dtype=np.uint32)
                yield sample, t, s, ids, data, slice(begin, end)


def main():
    with tempfile.TemporaryDirectory() as folder:
        printed = subprocess.run([sys.argv[1], folder], check=True, capture_output=True, text=True).stdout
        found = []
        for sample, t, s, ids, data, where in records(Path(folder)):
            numbers = [sample, data["sample_hash"][s], data["position"][t], data["gold"][t], data["flags"][t],
                       data["mass"][t : t + 1].view(np.uint32)[0], data["confidence"][t : t + 1].view(np.uint32)[0]]
            assert data["log_prob"].dtype == np.float16
            pairs = [f"{i}:{p}" for i, p in zip(ids, data["log_prob"][where].view(np.uint16))]
            found.append(" ".join([*map(str, numbers), *pairs]))
    expected = printed.splitlines()
    assert len(expected) == 1200 and sorted(found) == sorted(expected), "the records differ"


if __name__ == "__main__":
    main()
