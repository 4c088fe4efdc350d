"""Every command of docs/data.md and docs/evaluation.md, in the order of the page, with a model folder that has random weights."""

import os
import re
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from model_folder import make_model
from support import make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RUN = '[model]\npath = "model"\n[data]\nsequence_length = 48\n[replay]\nstore = ""\nnormalization = "full"\n[train]\nglobal_batch = 2\nmicro_batch = 2\n'


class PagesTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def follow(self, page: str, model: str, least: int) -> str:
        """Writes the page's files and runs its commands (blocks without a kind are for machines with a network); what they printed."""
        blocks = re.findall(r"^```(\w*) ?([\w.]*)\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
        self.assertGreaterEqual(sum(kind == "bash" for kind, _, _ in blocks), least)
        make_model(self.folder / model, 262)
        make_tokenizer(self.folder / model)
        environment = self.environment(self.folder)
        printed = ""
        for kind, file, text in blocks:
            if kind == "bash":
                done = subprocess.run(["bash", "-e", "-c", text], cwd=self.folder, env=environment, text=True, capture_output=True,
                                      timeout=100)
                self.assertEqual(done.returncode, 0, f"{text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
                printed += done.stdout
            elif kind:
                self.assertTrue(file, f"a block of {kind} has no file's name")
                (self.folder / file).write_text(text)
        return printed

    def test_data_can_be_brought(self) -> None:
        (self.folder / "run.toml").write_text(RUN)
        self.follow("data.md", "model", 4)
        self.assertTrue((self.folder / "runs" / "blend" / "metrics.jsonl").exists())

    def test_choices_are_scored(self) -> None:
        printed = self.follow("evaluation.md", "trained-model", 1)
        self.assertEqual(len((self.folder / "scores.jsonl").read_text().splitlines()), 3)
        for metric in ("acc", "acc_norm", "acc_bytes", "acc_token"):
            self.assertIn(metric, printed)

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        """`python` and `reprise` on the path."""
        programs = folder / "bin"
        programs.mkdir()
        for name, target in (("python", sys.executable), ("reprise", os.environ["REPRISE_PROGRAM"])):
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {target} "$@"\n')
            script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "plugin" / "python")}


if __name__ == "__main__":
    unittest.main()
