"""Fails when an object that is compiled for an instruction set defines a symbol that other objects may define too.

The linker keeps one copy of an inline function. If it kept one with AVX-512 instructions, other machines would stop at
it, so every shared (weak) symbol of such an object must belong to the namespace of its instruction set.
"""

import pathlib
import re
import subprocess
import sys

OBJECT = re.compile(r"_simd_(portable|avx2|avx512)\.dir/")


def shared_symbols(path):
    lines = subprocess.run(["nm", "--defined-only", str(path)], check=True, capture_output=True, text=True).stdout
    fields = [line.split() for line in lines.splitlines()]
    return [name for *_, kind, name in fields if kind in "WwVvu"]


def main(build_folder):
    objects = [path for path in pathlib.Path(build_folder).rglob("*_simd.cpp.o") if OBJECT.search(path.as_posix())]
    if not objects:
        return f"no kernel objects below {build_folder}"
    faults = []
    for path in objects:
        level = OBJECT.search(path.as_posix()).group(1)
        own = f"7reprise{len(level)}{level}"
        faults += [f"{path.name} ({level}) shares {name}" for name in shared_symbols(path)
                   if own not in name and not name.startswith("DW.ref.")]
    return "\n".join(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) or 0)
