"""The replay store read without reprise: read_store_test.py PROGRAM, which writes a store and prints what is in it."""

import json  # noqa: F401  (used by the lines of docs/formats.md)
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np


FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"
exec(re.search(r"```python\n(.*?)```", FORMATS.read_text(), re.DOTALL).group(1))  # defines records


def main():
    with tempfile.TemporaryDirectory() as folder:
        printed = subprocess.run([sys.argv[1], folder], check=True, capture_output=True, text=True).stdout
        found = []
        for sample, s, t, ids, data in records(Path(folder)):
            numbers = [sample, data["sample_hash"][s], data["position"][t], data["gold"][t], data["flags"][t],
                       data["mass"][t : t + 1].view(np.uint32)[0], data["confidence"][t : t + 1].view(np.uint32)[0]]
            assert data["log_prob"].dtype == np.float16
            pairs = [f"{i}:{p}" for i, p in zip(ids, data["log_prob"][data["id_ptr"][t] : data["id_ptr"][t + 1]].view(np.uint16))]
            found.append(" ".join([*map(str, numbers), *pairs]))
    expected = printed.splitlines()
    assert len(expected) == 1200 and sorted(found) == sorted(expected), "the records differ"


if __name__ == "__main__":
    main()
