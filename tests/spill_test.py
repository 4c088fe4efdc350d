"""Compiles the hot kernels and fails when one keeps values in memory that should be in registers, or when the table of
docs/kernels.md, which names them, says something else than the compiler.

    spill_test.py [launcher ...] nvcc
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# | `kernel<template arguments>` | source | registers | ...
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+\.cu)` \| (\d+) \|", re.MULTILINE)
ENTRY = re.compile(r"Compiling entry function '([^']+)'")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
TOLERANCE = 16  # registers: a compiler's next version may choose a little differently
OPTIONS = ["-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_90a", "-Xptxas", "-v", "-DREPRISE_WITH_CUDA", f"-I{ROOT}"]


def plain_names(mangled):
    """`kernel<arguments>` of each, without namespaces, result and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True).stdout
    names = []
    for line in text.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|\w+::|^void ", "", re.sub(r"\([\w:]+\)(?=\d)", "", line))
        names.append(name.split("(")[0].replace(" >", ">"))
    return names


def kernels_in(report):
    """{kernel: (registers, spilled bytes)} of what ptxas says."""
    names, registers, spilled = [], [], []
    for line in report.splitlines():
        if match := ENTRY.search(line):
            names.append(match.group(1))
        elif match := SPILL.search(line):
            if len(spilled) < len(names):
                spilled.append(int(match.group(1)) + int(match.group(2)))
        elif match := REGISTERS.search(line):
            if len(registers) < len(names):
                registers.append(int(match.group(1)))
    return dict(zip(plain_names(names), zip(registers, spilled), strict=True))


def compile_source(compiler, source):
    command = [*compiler, *OPTIONS, "-c", str(ROOT / source), "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return kernels_in(done.stdout + done.stderr)


def faults_of(table, compiled):
    faults = []
    for kernel, source, registers in table:
        if kernel not in compiled[source]:
            faults.append(f"{source} has no {kernel}; it has {', '.join(sorted(compiled[source]))}")
            continue
        used, spilled = compiled[source][kernel]
        if spilled > 0:
            faults.append(f"{source}: {kernel} spills: {spilled} bytes stored and loaded")
        if abs(used - int(registers)) > TOLERANCE:
            faults.append(f"{source}: {kernel} uses {used} registers, docs/kernels.md says {registers}")
    return faults


def main(compiler):
    table = ROW.findall((ROOT / "docs" / "kernels.md").read_text(encoding="utf-8"))
    if len(table) < 10:
        return f"docs/kernels.md names {len(table)} hot kernels"
    compiled = {source: compile_source(compiler, source) for source in sorted({source for _, source, _ in table})}
    return "\n".join(faults_of(table, compiled))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["nvcc"]) or 0)
