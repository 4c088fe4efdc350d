"""Reads the sources and fails on what the architecture forbids (docs/architecture.md):

- an include against the order core <- parallel <- {layers, loss, optimizer} <- {launcher, plugin};
- an environment variable read outside launcher/;
- a CUDA or NCCL header outside the files that are CUDA's own;
- a kernel source of several instruction sets (x_simd.cpp) that includes more than plain declarations.
"""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BELOW = {
    "core": [],
    "parallel": ["core"],
    "layers": ["core", "parallel"],
    "loss": ["core", "parallel"],
    "optimizer": ["core", "parallel"],
    "launcher": ["core", "parallel", "layers", "loss", "optimizer"],
    "plugin": ["core", "parallel", "layers", "loss", "optimizer"],
}
SUFFIXES = {".hpp", ".h", ".cpp", ".cu", ".cuh"}
QUOTED = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
ANGLED = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<([^>]+)>", re.MULTILINE)
ENVIRONMENT = re.compile(r"\b(secure_)?getenv\b|\benviron\b")
CUDA_HEADER = re.compile(r"^(cuda|cublas|cudnn|nccl|nvtx|nvToolsExt|cub/|mma\.h|cooperative_groups)")
CUDA_FILE = re.compile(r"\.cuh?$|_cuda\.[a-z]+$|(^|/)nccl_[^/]*$|^core/cuda/")
SIMD_FILE = re.compile(r"_simd\.cpp$")
PLAIN_HEADERS = {"cstdint", "cstddef"}


def without_comments(text):
    """The text with comments blanked; string literals are kept whole, so that a // inside one does not start a comment."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
    return pattern.sub(lambda match: match.group(0) if match.group(0).startswith('"') else " ", text)


def simd_faults(path, sources, seen):
    """Includes of a kernel source, followed through our own headers, that bring more than plain declarations."""
    faults = []
    for header in ANGLED.findall(sources[path]):
        if header not in PLAIN_HEADERS:
            faults.append(f"{path} includes <{header}>, which a kernel of several instruction sets must not see")
    for header in QUOTED.findall(sources[path]):
        if header != "core/simd.hpp" and header not in seen and header in sources:
            seen.add(header)
            faults += simd_faults(header, sources, seen)
    return faults


def faults_of(sources):
    """The faults of a tree, given as {path: text}."""
    sources = {path: without_comments(text) for path, text in sources.items()}
    faults = []
    for path, text in sorted(sources.items()):
        folder = path.split("/")[0]
        for header in QUOTED.findall(text):
            target = header.split("/")[0]
            if target != folder and target not in BELOW[folder]:
                faults.append(f"{path} includes {header}: {folder} may include only {BELOW[folder] + [folder]}")
        for header in ANGLED.findall(text):
            if CUDA_HEADER.match(header) and not CUDA_FILE.search(path):
                faults.append(f"{path} includes <{header}> outside CUDA's own files")
        if folder != "launcher" and ENVIRONMENT.search(text):
            faults.append(f"{path} reads environment variables, which only launcher/ may")
        if SIMD_FILE.search(path):
            faults += [f"{path}: {fault}" for fault in simd_faults(path, sources, set())]
    return faults


def read_tree():
    files = [f for folder in BELOW for f in (ROOT / folder).rglob("*") if f.suffix in SUFFIXES and f.is_file()]
    return {f.relative_to(ROOT).as_posix(): f.read_text(encoding="utf-8") for f in files}


class TheTree(unittest.TestCase):
    def test_has_no_forbidden_edge(self):
        tree = read_tree()
        self.assertIn("core/error.cpp", tree)
        self.assertIn("launcher/data_loader.cpp", tree)
        self.assertEqual(faults_of(tree), [])


class TheCheck(unittest.TestCase):
    """Planted faults are found, ordinary code is not one."""

    def expect(self, number, **files):
        sources = {name.replace("__", "/") + suffix: text for name, (suffix, text) in files.items()}
        self.assertEqual(len(faults_of(sources)), number, faults_of(sources))

    def test_upward_and_sideways_includes(self):
        self.expect(1, core__a=(".cpp", '#include "parallel/shard.hpp"\n'))
        self.expect(1, layers__a=(".hpp", '  #  include "loss/loss.hpp"\n'))
        self.expect(1, optimizer__a=(".cpp", '#include "tests/support/x.hpp"\n'))
        self.expect(1, plugin__a=(".cpp", '#include "launcher/config.hpp"\n'))
        self.expect(1, loss__a=(".cpp", '#include "neighbour.hpp"\n'))
        self.expect(0, launcher__a=(".cpp", '#include "loss/loss.hpp"\n#include "layers/x.hpp"\n#include "core/x.hpp"\n'))
        self.expect(0, core__a=(".cpp", '// #include "parallel/shard.hpp"\n/* \n#include "loss/loss.hpp"\n*/\n'))

    def test_environment(self):
        self.expect(1, core__a=(".cpp", 'auto* x = std::getenv("HOME");'))
        self.expect(1, loss__a=(".cpp", "extern char** environ;"))
        self.expect(0, launcher__a=(".cpp", 'auto* x = std::getenv("HOME");'))
        self.expect(0, core__a=(".cpp", "// never calls getenv\nint environment;"))

    def test_cuda_headers(self):
        self.expect(1, core__a=(".hpp", "#include <cuda_runtime.h>\n"))
        self.expect(0, core__a=(".cu", "#include <cuda_runtime.h>\n"), core__b_cuda=(".cpp", "#include <cublasLt.h>\n"))

    def test_kernel_sources(self):
        self.expect(1, core__a_simd=(".cpp", '#include "core/simd.hpp"\n#include <algorithm>\n'))
        plain = {"core__a_simd": (".cpp", '#include "core/simd.hpp"\n#include "core/b.hpp"\n')}
        self.expect(0, **plain, core__b=(".hpp", "#include <cstdint>\n"))
        self.expect(1, **plain, core__b=(".hpp", "#include <vector>\n"))


if __name__ == "__main__":
    unittest.main()
