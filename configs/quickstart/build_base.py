"""Trains the quickstart's base model again with reprise, from random weights, and writes it to configs/quickstart/base
(Llama layout, bfloat16 weights, about 7 MB). Takes some 25 minutes on two cores; a killed build goes on when started again."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from program import BASE, HERE, RANKS, ROOT, reprise, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("base-run"), help="data, run and logs (default: %(default)s)")
    options = parser.parse_args()
    folder = options.folder
    initial, tokenizer = folder / "initial", folder / "tokenizer"
    if not (initial / "model.safetensors").exists():
        subprocess.run([sys.executable, HERE / "make_data.py", folder / "data", "--tokenizer", tokenizer, "--base", "--train-tokenizer"],
                       check=True, cwd=ROOT)
        subprocess.run([sys.executable, HERE / "init_model.py", initial, "--tokenizer", tokenizer], check=True, cwd=ROOT)
    train(HERE / "base.toml", folder / "run", {"model.path": initial, "data.train": folder / "data" / "base"}, folder / "log.txt",
          ranks=RANKS)
    shutil.rmtree(folder / "export", ignore_errors=True)
    reprise("export", "--run", folder / "run", "--out", folder / "export", "--dtype", "bfloat16")
    shutil.rmtree(BASE, ignore_errors=True)
    shutil.copytree(folder / "export", BASE)
    config = json.loads((BASE / "config.json").read_text())
    print(f"{BASE}: {sum(f.stat().st_size for f in BASE.iterdir()) / 2**20:.1f} MiB, {config['torch_dtype']}")


if __name__ == "__main__":
    main()
