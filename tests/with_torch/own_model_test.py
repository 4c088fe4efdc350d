"""README's section "Your own model and data", run as it stands there, for random checkpoints of every family: from JSONL to what
transformers generates with the exported folder. Nothing is done here that the section does not name, but making model and chats."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
import transformers
from models import FAMILIES, make_model, run_reprise
from support import make_tokenizer

SECTION = "## Your own model and data"


def code_blocks() -> list[tuple[str, str]]:
    """(language, text) of the section's blocks."""
    readme = (Path(os.environ["REPRISE_SOURCE_DIR"]) / "README.md").read_text()
    section = readme[readme.index(SECTION):]
    section = section[: section.index("\n## ", 1)]
    return re.findall(r"^```(bash|python)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


class OwnModelTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.blocks = code_blocks()
        self.commands = "\n".join(text for language, text in self.blocks if language == "bash")

    def tearDown(self) -> None:
        self._folder.cleanup()

    def word_after(self, pattern: str) -> str:
        found = re.search(pattern + r"\s+([\w./-]+)", self.commands)
        self.assertIsNotNone(found, f"README's section has no {pattern}")
        return found.group(1)

    def write_chats(self) -> None:
        colours = ["red", "green", "blue", "grey"]
        lines = [{"messages": [{"role": "user", "content": f"Which colour has ball {i}?"},
                               {"role": "assistant", "content": f"It is {colours[i % 4]}."}]} for i in range(40)]
        lines += [{"prompt": f"{i} + 1 = ", "completion": f"{i + 1}"} for i in range(8)]
        (self.folder / self.word_after("reprise prepare")).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run_as_written(self) -> None:
        """`reprise` and `python` of the section are the program that was built and the interpreter of these tests."""
        tools = self.folder / "tools"
        tools.mkdir()
        (tools / "reprise").symlink_to(os.environ["REPRISE_PROGRAM"])
        (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (tools / "python").chmod(0o755)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(self.folder / "cache")}
        for language, text in self.blocks:
            words = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
            done = subprocess.run(words, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  check=False)
            self.assertEqual(done.returncode, 0, f"{text}\n{done.stdout}")

    def follow(self, family: str) -> None:
        base = self.folder / self.word_after("--tokenizer")
        make_model(base, family, eos_token_id=256, vocab_size=288)  # the tokenizer has 260 ids
        make_tokenizer(base, tokenizer_class="PreTrainedTokenizerFast")
        self.write_chats()
        self.run_as_written()

        out = self.folder / self.word_after("--out(?!\\s+data)")
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        before = transformers.AutoModelForCausalLM.from_pretrained(base)
        self.assertFalse(torch.equal(model.model.norm.weight, before.model.norm.weight), "nothing was trained")
        question = [{"role": "user", "content": "Which colour has ball 7?"}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            answer = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, suppress_tokens=list(range(260, 288)))
        want = [token for token in answer[0, len(prompt):].tolist() if token != 256]
        printed = run_reprise("generate", "--model", out, "--prompt", ",".join(map(str, prompt)), "--max-tokens", 12)
        got = json.loads(re.search(r"\{.*\}", printed).group())["tokens"]
        self.assertEqual(got, want)

    def test_the_section_names_every_step(self) -> None:
        for command in ("python -m reprise prepare", "reprise init", "reprise check", "reprise collect", "reprise train",
                        "reprise export"):
            self.assertIn(command, self.commands)


for _family in FAMILIES:
    setattr(OwnModelTest, f"test_{_family}", lambda self, family=_family: self.follow(family))

if __name__ == "__main__":
    unittest.main()
