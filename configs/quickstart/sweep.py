"""Chooses the quickstart's learning rates: each optimizer gets the same grid and the same runs, judged on validation
questions that the report never uses. Writes learning_rates.json, which study.py reads and the report shows. A sweep that
was killed goes on with the runs that are missing."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from program import BASE, HERE, execution_accuracy, general_loss, reprise, train

GRID = (2.5e-4, 5e-4, 1e-3, 2e-3)
HEADS = ("full", "tile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("quickstart-run"), help="where data and store of the quickstart are")
    options = parser.parse_args()
    data, log = options.folder / "data", options.folder / "sweep.txt"
    base_loss = general_loss(BASE, data / "general_test", log)
    rows = []
    for optimizer in ("adamw", "moclip"):
        for lr in GRID:
            correct = total = 0
            rise = 0.0
            for head in HEADS:
                run = options.folder / "sweep" / f"{optimizer}-{lr:g}-{head}"
                if not (run / "model").exists():
                    shutil.rmtree(run, ignore_errors=True)
                    train(HERE / "quickstart.toml", run, {"optimizer.name": optimizer, "optimizer.lr": lr, "replay.normalization": head,
                                                          "train.checkpoint_every": 0}, log)
                    reprise("export", "--run", run, "--out", run / "model", "--dtype", "float32", log=log)
                score = execution_accuracy(run / "model", data / "domain_valid", run, log)
                correct, total = correct + score["correct"], total + score["total"]
                rise += (general_loss(run / "model", data / "general_test", log) - base_loss) / len(HEADS)
            rows.append({"optimizer": optimizer, "lr": lr, "accuracy": 100 * correct / total, "rise": rise})
            print(rows[-1], flush=True)
    chosen = {}
    for optimizer in ("adamw", "moclip"):
        best = max((row for row in rows if row["optimizer"] == optimizer), key=lambda row: (row["accuracy"], -row["rise"]))
        best["chosen"], chosen[optimizer] = True, best["lr"]
    text = (f"Each optimizer got the same grid and the same effort: full and tile heads at {len(GRID)} rates, judged by execution accuracy on 200 "
            f"validation questions (mean of the two heads; not the 400 of the table). Starred: used above. Measured {time.strftime('%Y-%m-%d')} "
            f"with configs/quickstart/sweep.py.")
    (HERE / "learning_rates.json").write_text(json.dumps({"chosen": chosen, "shown": {"text": text, "rows": rows}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
