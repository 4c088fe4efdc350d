"""Everything that a GPU should show, in under ten minutes: run_all [--out FOLDER] [--minutes 9.5] [--tiny].

Runs, in this order and each within its share of the time: the device tests; the small ones again under compute-sanitizer;
device_bench; peers.py where torch imports; Nsight Compute's counters of the hot kernels; the quickstart's tile run on the
GPU beside the CPU's; with several GPUs a step with and without overlapped traffic. Writes results.json and results.md.
Stands in the bundle beside programs.tar.xz, which it unpacks to bin/ and lib/, and data/."""

from __future__ import annotations

import argparse
import glob
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SANITIZED_TESTS = ("core", "optimizer", "loss", "layers")  # device test programs, small shapes
HOT_KERNELS = "token_head|tile_head|moclip|update|top_k"


def library_path(folder: Path) -> str:
    """Our libraries, then CUDA's from the toolkit or from torch's wheels."""
    places = [str(folder), "/usr/local/cuda/lib64", *sorted(glob.glob("/usr/local/cuda-*/lib64"))]
    for packages in {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}:
        places += sorted(glob.glob(f"{packages}/nvidia/*/lib"))
    return ":".join(p for p in places if os.path.isdir(p))


class Job:
    """Runs commands until the time is over and keeps what they said."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.end = out, time.monotonic() + 60 * minutes
        self.environment = dict(os.environ)
        self.results: dict[str, object] = {"date": time.strftime("%Y-%m-%d"), "stages": []}

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, name: str, command: list[object], limit: float) -> tuple[int, str]:
        """rc and output; rc 124 when it was stopped, 125 when no time was left. The log is <out>/<name>.log."""
        limit, begin = min(limit, self.left()), time.monotonic()
        if limit < 5:
            code, text = 125, "not run: the time was over"
        else:
            try:
                done = subprocess.run([str(w) for w in command], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      timeout=limit, cwd=self.out, text=True, errors="replace", check=False)
                code, text = done.returncode, done.stdout
            except subprocess.TimeoutExpired as error:
                code = 124
                text = (error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout) or ""
            except OSError as error:
                code, text = 127, str(error)
        (self.out / f"{name}.log").write_text(text)
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        self.results["stages"].append({"stage": name, "rc": code, "seconds": round(time.monotonic() - begin, 1), "said": last[:160]})
        print(f"{name:<34} rc {code:<4} {time.monotonic() - begin:6.1f} s  {last[:100]}", flush=True)
        return code, text


def tests(job: Job) -> None:
    for program in sorted((HERE / "bin").glob("*_tests")):
        job.run(program.name, [program, "--gtest_brief=1"], 90)
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        for program in sorted((HERE / "bin").glob("*_tests")):
            if program.name.split("_")[0] in SANITIZED_TESTS and os.path.exists(sanitizer):
                job.run(f"{tool}-{program.name}", [sanitizer, "--tool", tool, "--error-exitcode", "9", program, "--gtest_brief=1"], 40)


def tables(job: Job, tiny: bool) -> None:
    small = ["--tiny"] if tiny else []
    for name, command, file in (("device_bench", [HERE / "bin/device_bench"], "device.json"),
                                ("peers", [sys.executable, HERE / "peers.py"], "peers.json")):
        if name == "peers" and importlib.util.find_spec("torch") is None:
            job.results["stages"].append({"stage": name, "rc": 125, "seconds": 0.0, "said": "not run: no torch here"})
            continue
        job.run(name, [*command, job.out / file, *small], 150)
        if (job.out / file).exists():
            job.results[name] = json.loads((job.out / file).read_text())


def counters(job: Job) -> None:
    profiler = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if not os.path.exists(profiler):
        return
    job.run("counters", [profiler, "--clock-control", "none", "--kernel-name", f"regex:{HOT_KERNELS}", "--launch-count", "12",
                         "--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis", "--section", "LaunchStats", "--section",
                         "Occupancy", HERE / "bin/device_bench", job.out / "counted.json", "--tables", "heads,collection,optimizers"], 90)


def quickstart(job: Job, steps: int) -> None:
    """The tile run of the quickstart on both devices: losses step by step, and milliseconds."""
    if not (HERE / "data").is_dir():
        return
    losses: dict[str, list[dict]] = {}
    for device in ("cuda", "cpu"):
        run = job.out / f"run-{device}"
        words = [HERE / "data/quickstart.toml", f"model.path={HERE / 'data/base'}", f"data.train={HERE / 'data/domain'}", "data.eval=[]",
                 f"replay.store={job.out / ('store-' + device)}", f"run.folder={run}", f"parallel.device={device}", "train.checkpoint_every=0",
                 f"train.steps={steps}"]
        if job.run(f"collect-{device}", [HERE / "bin/reprise", "collect", *words], 60)[0] == 0:
            job.run(f"train-{device}", [HERE / "bin/reprise", "train", *words], 90)
        metrics = run / "metrics.jsonl"
        if metrics.exists():
            losses[device] = [row for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row and "step_ms" in row]
    if len(losses) == 2:
        pairs = [(a["loss"], b["loss"]) for a, b in zip(losses["cuda"], losses["cpu"])]
        job.results["quickstart"] = {
            "steps": len(pairs), "largest_relative_difference": max(abs(a - b) / abs(b) for a, b in pairs),
            **{f"{device}_step_ms": sorted(row["step_ms"] for row in rows)[len(rows) // 2] for device, rows in losses.items()}}


def overlap(job: Job, steps: int) -> None:
    """The same data-parallel run with and without parallel.overlap, on two GPUs with NCCL between them."""
    gpus = ""
    if shutil.which("nvidia-smi"):
        gpus = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    if sum(line.startswith("GPU ") for line in gpus.splitlines()) < 2:
        job.results["stages"].append({"stage": "overlap", "rc": 125, "seconds": 0.0,
                                      "said": "not run: fewer than two GPUs here, and NCCL wants one for every rank"})
        return
    step_ms: dict[str, float] = {}
    for value in ("false", "true"):
        run = job.out / f"run-overlap-{value}"
        job.run(f"overlap-{value}", [HERE / "bin/reprise", "train", HERE / "data/quickstart.toml", "--ranks", 2, "parallel.tensor=1",
                                     "parallel.transport=nccl", "parallel.device=cuda", f"parallel.overlap={value}", "data.eval=[]",
                                     f"model.path={HERE / 'data/base'}", f"data.train={HERE / 'data/domain'}", "train.checkpoint_every=0",
                                     f"replay.store={job.out / 'store-cuda'}", f"run.folder={run}", f"train.steps={steps}"], 60)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] if (run / "metrics.jsonl").exists() else []
        times = sorted(row["step_ms"] for row in rows[3:] if "step_ms" in row)
        if times:
            step_ms[f"overlap_{value}_step_ms"] = times[len(times) // 2]
    if step_ms:
        job.results["overlap"] = step_ms


def markdown(results: dict) -> str:
    """The tables for docs/results.md."""

    def table(rows: list[dict]) -> str:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        show = lambda value: f"{value:,.3g}" if isinstance(value, float) else str(value)  # noqa: E731
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        return "\n".join(lines + ["| " + " | ".join(show(row[c]) if c in row else "–" for c in columns) + " |" for row in rows])

    text = [f"{results['date']}, `bench/gpu/run_all`"]
    for source in ("device_bench", "peers"):
        for name, rows in results.get(source, {}).items():
            if isinstance(rows, list) and rows:
                text += [f"### {source}: {name}", table(rows)]
    if "quickstart" in results:
        text += ["### quickstart, tile 8 · MoClip, GPU beside CPU", table([results["quickstart"]])]
    if "overlap" in results:
        text += ["### two GPUs, NCCL: parallel.overlap off and on", table([results["overlap"]])]
    text += ["### stages", table(results["stages"])]
    return "\n\n".join(text) + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=HERE / "out")
    options.add_argument("--minutes", type=float, default=9.5)
    options.add_argument("--tiny", action="store_true", help="small shapes, no profilers, no quickstart: a check of the bundle on an emulated device")
    arguments = options.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    libraries = HERE / "lib"
    if not libraries.is_dir():
        with tarfile.open(HERE / "programs.tar.xz") as archive:
            archive.extractall(HERE)
    job = Job(out, arguments.minutes)
    job.environment["LD_LIBRARY_PATH"] = library_path(libraries)
    tests(job)
    tables(job, arguments.tiny)
    if not arguments.tiny:
        counters(job)
        quickstart(job, steps=130)
        overlap(job, steps=60)
    (out / "results.json").write_text(json.dumps(job.results, indent=1) + "\n")
    (out / "results.md").write_text(markdown(job.results))
    failed = [stage["stage"] for stage in job.results["stages"] if stage["rc"] not in (0, 125)]
    print(f"{out / 'results.md'}; failed: {', '.join(failed) if failed else 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
