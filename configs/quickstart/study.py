"""The quickstart: collect a replay store over two tensor-parallel ranks, post-train with every head and optimizer over two
ZeRO ranks, kill one run and resume it, and write report.html. Started by ./quickstart."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from program import BASE, HERE, RANKS, ROOT, Failed, command, environment, execution_accuracy, general_loss, reprise, train

from reprise.report import report  # noqa: E402  (program.py puts it on the path)
from reprise.runs import Run, Store, read_tensors, relative_distance  # noqa: E402

RUN_FILE = HERE / "quickstart.toml"
RATES = HERE / "learning_rates.json"
TIMES = {"head_ms", "step_ms", "tokens_per_second", "memory_bytes"}
HEADS = ("full", "token", "tile")
OPTIMIZERS = ("adamw", "moclip")


def variants() -> dict[str, dict[str, object]]:
    """Run-file overrides by folder name, learning rates as chosen by sweep.py."""
    rates = json.loads(RATES.read_text())["chosen"]
    runs: dict[str, dict[str, object]] = {}
    for head in HEADS:
        for optimizer in OPTIMIZERS:
            runs[f"{head}-{optimizer}"] = {"replay.normalization": head, "optimizer.name": optimizer, "optimizer.lr": rates[optimizer]}
    runs["tile-moclip-global"] = {**runs["tile-moclip"], "optimizer.angle_scope": "global"}
    return runs


class Stages:
    """Says what is being done and how long it took."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, what: str, work):
        print(f"  {what:<58}", end="", flush=True)
        begin = time.monotonic()
        result = work()
        print(f"{time.monotonic() - begin:6.1f} s", flush=True)
        return result


def measure(run: Path, data: Path, base_loss: float, log: Path) -> None:
    """Exports the run's model and writes what it knows and what it forgot to results.json."""
    model = run / "model"
    reprise("export", "--run", run, "--out", model, "--dtype", "float32", log=log)
    results = {"execution_accuracy": execution_accuracy(model, data / "domain_test", run, log),
               "general_loss": {"before": base_loss, "after": general_loss(model, data / "general_test", log)},
               "relative_l2": relative_distance(model, BASE)}
    (run / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def kill_and_resume(run: Path, overrides: dict[str, object], steps: int, log: Path) -> dict[str, object]:
    """Starts the run again, kills it with SIGKILL at a random step after the first checkpoint, lets it go on, compares."""
    copy = run.with_name(run.name + "-killed")
    shutil.rmtree(copy, ignore_errors=True)
    every = 50
    kill_at = random.SystemRandom().randrange(every + 5, min(steps - 5, 2 * every - 2))
    words = [f"{key}={value}" for key, value in {**overrides, "run.folder": copy}.items()]
    metrics = copy / "metrics.jsonl"
    with open(log, "a") as file:
        process = subprocess.Popen(command("train", RUN_FILE, *words, ranks=RANKS), cwd=ROOT, env=environment(), stdout=file,
                                   stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b'"step_ms"') >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
                _kill_ranks(copy)
                break
            time.sleep(0.02)
        process.wait()
    reached = sum("step_ms" in line for line in metrics.read_text().splitlines())
    train(RUN_FILE, copy, overrides, log)
    same_metrics = _without_times(run) == _without_times(copy)
    ours, theirs = _final_state(run), _final_state(copy)
    same_state = ours.keys() == theirs.keys() and all((ours[n] == theirs[n]) for n in ours)
    text = (f"{Run.read(run).label} was started again, killed with SIGKILL after step {reached} of {steps} and started once more; it went "
            f"on from the checkpoint of step {every}. Compared with the uninterrupted run: metrics of all {steps} steps (times apart) "
            f"{'equal' if same_metrics else 'DIFFERENT'}, {len(ours)} pieces of master weights and moments "
            f"{'equal bit for bit' if same_state else 'DIFFERENT'}.")
    return {"identical": bool(same_metrics and same_state), "text": text, "killed_at_step": reached}


def _kill_ranks(folder: Path) -> None:
    """mpirun gives its ranks process groups of their own; those of this run are told by its folder in their arguments."""
    wanted = f"run.folder={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, PermissionError):
                continue


def _without_times(run: Path) -> list[dict]:
    return [{k: v for k, v in step.items() if k not in TIMES} for step in Run.read(run).steps]


def _final_state(run: Path) -> dict[str, bytes]:
    latest = (run / "checkpoints" / "LATEST").read_text().strip()
    return {f"{file.name}/{name}": values.tobytes() for file in sorted((run / "checkpoints" / latest).glob("*.safetensors"))
            for name, values in read_tensors(file)}


def facts(runs: dict[str, Run], store: Store, seconds: float) -> tuple[str, list[tuple[str, str]]]:
    """The page's first lines, from the numbers as they came out."""

    def accuracy(name: str) -> float:
        a = runs[name].results["execution_accuracy"]
        return 100 * a["correct"] / a["total"]

    def rise(name: str) -> float:
        g = runs[name].results["general_loss"]
        return g["after"] - g["before"]

    full, ours = "full-adamw", "tile-moclip"
    head = runs[full].median_of("head_ms") / runs[ours].median_of("head_ms")
    step = runs[full].median_of("step_ms") / runs[ours].median_of("step_ms")
    summary = (f"A {store.vocab_size:,}-id Llama of 3.3 M parameters that knows Python sources learns to answer telecom questions in SQL. "
               f"Full cross-entropy with AdamW answers {accuracy(full):.1f} % of 400 held-out questions and loses {rise(full):.2f} nats per token on "
               f"held-out sources; replay over tiles with MoClip answers {accuracy(ours):.1f} % and loses {rise(ours):.2f}. One seed, a small model: "
               f"a demonstration, not evidence about large ones.")
    return summary, [
        (f"{accuracy(ours):.1f} %", f"answers right, tile · MoClip (full · AdamW: {accuracy(full):.1f} %)"),
        (f"{rise(ours):+.2f} nats", f"general loss, tile · MoClip (full · AdamW: {rise(full):+.2f})"),
        (f"{head:.1f}x", f"faster loss head than full; whole step {step:.2f}x"),
        (f"{store.bytes_per_token:.0f} bytes", "of replay store per token"),
        (f"{seconds:.0f} s", "for everything on this page"),
    ]


def machine() -> dict[str, str]:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
                 platform.machine())
    return {"processor": model, "cores": str(len(os.sched_getaffinity(0))), "ranks": str(RANKS), "date": time.strftime("%Y-%m-%d")}


def study(folder: Path) -> Path:
    stage, data, log = Stages(), folder / "data", folder / "log.txt"
    runs_folder = folder / "runs"
    runs_folder.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    stage("check the machine", lambda: reprise("doctor", log=log))
    stage("make the data (Python sources, telecom questions)",
          lambda: subprocess.run([sys.executable, HERE / "make_data.py", data], check=True, cwd=ROOT))
    stage(f"collect Top-K sets over {RANKS} tensor-parallel ranks",
          lambda: reprise("collect", RUN_FILE, "--fresh", f"parallel.tensor={RANKS}", ranks=RANKS, log=log))
    base_loss = stage("measure the base model: general loss", lambda: general_loss(BASE, data / "general_test", log))
    base_accuracy = stage("measure the base model: questions",
                          lambda: execution_accuracy(BASE, data / "domain_test", folder, log))
    for name, overrides in variants().items():
        shutil.rmtree(runs_folder / name, ignore_errors=True)
        stage(f"train {name}", lambda: train(RUN_FILE, runs_folder / name, overrides, log))
        stage(f"  answer {base_accuracy['total']} questions, measure what was forgotten",
              lambda: measure(runs_folder / name, data, base_loss, log))
    runs = {name: Run.read(runs_folder / name) for name in variants()}
    steps = len(runs["tile-moclip"].steps)
    resume = stage("kill a run, resume it, compare the bits",
                   lambda: kill_and_resume(runs_folder / "tile-moclip", variants()["tile-moclip"], steps, log))
    store = Store.read(folder / "store")
    seconds = time.monotonic() - stage.start
    summary, numbers = facts(runs, store, seconds)
    content = {"summary": summary, "facts": numbers, "base": {"execution_accuracy": base_accuracy, "general_loss": base_loss},
               "resume": resume, "learning_rates": json.loads(RATES.read_text())["shown"], "machine": machine()}
    (folder / "study.json").write_text(json.dumps(content, indent=1) + "\n")
    out = ROOT / "report.html"
    report([runs_folder / name for name in runs], out, store=folder / "store", study=folder / "study.json",
           title="reprise quickstart: learn SQL, keep Python")
    print(f"\n{summary}\n\nreport: {out}  ({seconds:.0f} s; runs and logs in {folder})")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("quickstart-run"))
    options = parser.parse_args()
    try:
        study(options.folder)
    except Failed as error:
        print(f"\n\n{error}\n\nthe whole output is in {options.folder / 'log.txt'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
