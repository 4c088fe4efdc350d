"""The quickstart's task with adapters instead of all parameters: {full, tile} x {AdamW, MoClip} over a few seeds, each
optimizer at the rate that answers most validation questions. Uses data and store of ./quickstart; docs/lora.md has the
table. A study that was killed goes on with the runs that are missing."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import shutil
import threading
from pathlib import Path
from statistics import mean

import program
from program import BASE, HERE, execution_accuracy, general_loss, reprise

from reprise.runs import relative_distance  # noqa: E402  (program.py puts it on the path)

OPTIMIZERS = ("adamw", "moclip")
GRID = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
HEADS = ("full", "tile")


class Study:
    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.store, self.out = options.folder / "data", options.folder / "store", options.out
        self.rank, self.jobs, self.collecting = options.rank, options.jobs, threading.Lock()
        self.out.mkdir(parents=True, exist_ok=True)
        self.base_loss = self.remember(self.out / "base.json", lambda: general_loss(BASE, self.data / "general_test", self.out / "base.txt"))

    @staticmethod
    def remember(path: Path, work):
        if not path.exists():
            path.write_text(json.dumps(work()) + "\n")
        return json.loads(path.read_text())

    def store_of(self, seed: int) -> Path:
        """A store belongs to a data.seed; that of ./quickstart has seed 1."""
        if seed == 1:
            return self.store
        store = self.out / f"store-seed{seed}"
        with self.collecting:
            if not (store / "manifest.json").exists():
                reprise("collect", HERE / "quickstart.toml", "--threads", 1, f"data.train={self.data / 'domain'}", f"replay.store={store}",
                        f"data.seed={seed}", log=self.out / "base.txt")
        return store

    def train(self, head: str, optimizer: str, lr: float, seed: int) -> Path:
        """The merged model of a run over adapters, or with rank 0 of all parameters."""
        run = self.out / f"{head}-{optimizer}-{lr:g}-seed{seed}"
        if not (run / "model").exists():
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            values = {"data.train": self.data / "domain", "replay.store": self.store_of(seed), "replay.normalization": head,
                      "optimizer.name": optimizer, "optimizer.lr": lr, "lora.rank": self.rank, "lora.alpha": 2 * max(1, self.rank),
                      "data.seed": seed, "train.seed": seed, "train.checkpoint_every": 0, "run.folder": run / "run"}
            words = [f"{key}={value}" for key, value in values.items()]
            reprise("train", HERE / "quickstart.toml", "--threads", 1, *words, log=run / "log.txt")
            reprise("export", "--run", run / "run", "--out", run / "model", "--dtype", "float32", *(["--merge"] if self.rank else []),
                    log=run / "log.txt")
        return run

    def score(self, run: Path, prefix: str) -> float:
        def answer() -> dict[str, int]:
            return execution_accuracy(run / "model", self.data / prefix, run, run / "log.txt")

        result = self.remember(run / f"{prefix}.json", answer)
        return 100 * result["correct"] / result["total"]

    def validate(self, optimizer: str, lr: float) -> tuple[str, float, float]:
        return optimizer, lr, self.score(self.train("tile", optimizer, lr, 1), "domain_valid")

    def measure(self, head: str, optimizer: str, lr: float, seed: int) -> dict[str, object]:
        run = self.train(head, optimizer, lr, seed)
        loss = self.remember(run / "general.json", lambda: general_loss(run / "model", self.data / "general_test", run / "log.txt"))
        distance = self.remember(run / "distance.json", lambda: relative_distance(run / "model", BASE))
        row = {"head": head, "optimizer": optimizer, "lr": lr, "seed": seed, "accuracy": self.score(run, "domain_test"),
               "rise": loss - self.base_loss, "distance": 100 * distance}
        print(json.dumps(row), flush=True)
        return row

    def run_all(self, function, cases: list[tuple]) -> list:
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda case: function(*case), cases))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("quickstart-run"), help="where data and store of the quickstart are")
    parser.add_argument("--out", type=Path, default=Path("quickstart-run/lora"))
    parser.add_argument("--rank", type=int, default=8, help="0: every parameter, for comparison")
    parser.add_argument("--rates", type=json.loads, default={}, help='chosen already, as {"adamw": 0.002, "moclip": 0.002}')
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--program", type=Path, default=program.PROGRAM)
    options = parser.parse_args()
    program.PROGRAM = options.program
    study = Study(options)
    rates = dict(options.rates)
    if not rates:
        for optimizer, lr, accuracy in study.run_all(study.validate, [(name, lr) for name in OPTIMIZERS for lr in GRID]):
            print(f"{optimizer} at {lr:g}: {accuracy:.1f} % of the validation questions", flush=True)
            rates[optimizer] = max(rates.get(optimizer, (-1.0, 0.0)), (accuracy, -lr))
        rates = {name: -best[1] for name, best in rates.items()}
    cases = [(head, name, rates[name], seed) for seed in range(1, options.seeds + 1) for head in HEADS for name in OPTIMIZERS]
    rows = study.run_all(study.measure, cases)
    for head in HEADS:
        for name in OPTIMIZERS:
            same = [row for row in rows if (row["head"], row["optimizer"]) == (head, name)]
            text = [f"{mean(row[key] for row in same):.3f} ({', '.join(f'{row[key]:.3f}' for row in same)})"
                    for key in ("accuracy", "rise", "distance")]
            print(f"| {head} · {name} at {rates[name]:g} | {' | '.join(text)} |")


if __name__ == "__main__":
    main()
