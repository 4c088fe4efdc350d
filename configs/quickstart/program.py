"""Calls of the reprise program, and the domain's score, for the scripts of this folder. All run from the repository root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "plugin" / "python")]

import nl2sql  # noqa: E402

PROGRAM = ROOT / "build" / "bin" / "reprise"
BASE = HERE / "base"
RANKS = 2


def environment() -> dict[str, str]:
    """mpirun wants to be told that root and more ranks than cores are meant."""
    return {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}


def command(*arguments: object, ranks: int = 1) -> list[str]:
    launch = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    return [*launch, str(PROGRAM), *map(str, arguments)]


class Failed(Exception):
    """A step of the study did not work; the message says which command and where its output is."""


def reprise(*arguments: object, ranks: int = 1, log: Path | None = None) -> str:
    """Runs the program and returns what it printed on stdout; its output also goes to `log`."""
    words = command(*arguments, ranks=ranks)
    done = subprocess.run(words, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if log is not None:
        with open(log, "a") as file:
            file.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


def train(run_file: Path, folder: Path, overrides: dict[str, object], log: Path, ranks: int = RANKS) -> None:
    words = [f"{key}={value}" for key, value in {**overrides, "run.folder": folder}.items()]
    reprise("train", run_file, *words, ranks=ranks, log=log)


def general_loss(model: Path, prefix: Path, log: Path) -> float:
    """Mean negative log-likelihood per token, nats."""
    return json.loads(reprise("eval", "--model", model, "--data", prefix, "--sequence-length", 512, "--json", log=log))["loss"]


def execution_accuracy(model: Path, prefix: Path, folder: Path, log: Path) -> dict[str, int]:
    """Generates an answer to every question of `prefix`, runs it and the reference in SQLite, counts equal results."""
    from reprise.prepare import Tokenizer

    output = folder / f"answers-{prefix.name}.jsonl"
    reprise("generate", "--model", model, "--data", prefix, "--max-tokens", 96, "--batch", 100, "--out", output, log=log)
    tokenizer = Tokenizer(BASE)
    pairs = [json.loads(line) for line in prefix.with_suffix(".jsonl").read_text().splitlines()]
    database = nl2sql.build_database(nl2sql.TELECOM)
    correct, judged = 0, []
    for line in output.read_text().splitlines():
        answer = json.loads(line)
        pair = pairs[answer["sample"]]
        text = tokenizer.core.decode(answer["tokens"])
        good = nl2sql.same_result(database, text, pair["completion"])
        correct += int(good)
        judged.append({"question": pair["prompt"], "answer": text, "reference": pair["completion"], "correct": good})
    if len(judged) != len(pairs):
        raise Failed(f"{output} holds {len(judged)} answers to {len(pairs)} questions")
    output.write_text("".join(json.dumps(entry) + "\n" for entry in judged))
    return {"correct": correct, "total": len(pairs)}
