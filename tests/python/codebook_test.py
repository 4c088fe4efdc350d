"""Tokens are ids below V and nothing else: sounds and pictures go through the whole program, on two ranks, without a tokenizer."""

import json
import tempfile
import unittest
from pathlib import Path

import codebooks
from model_folder import make_model, reprise

from reprise.indexed_dataset import write_indexed_dataset

RUN = """
[model]
path = "base"
[data]
train = "train"
eval = ["test"]
sequence_length = 56
[replay]
store = "store"
k_max = 100
normalization = "tile"
[optimizer]
lr = 3e-3
[train]
steps = 30
global_batch = 16
micro_batch = 8
[parallel]
tensor = 2
[run]
folder = "run"
"""


class CodebookTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def write(self, name: str, count: int, seed: int, pitches: tuple[int, ...]) -> list:
        tokens, masks, weights = codebooks.documents(count, seed, pitches)
        write_indexed_dataset(self.folder / name, tokens, codebooks.VOCAB_SIZE, masks=masks, weights=weights)
        return tokens

    def loss(self, model: str) -> float:
        return json.loads(reprise("eval", "--model", model, "--data", "test", "--json", "--tensor", 2, ranks=2, folder=self.folder))["loss"]

    def test_sounds_and_pictures_are_learned(self) -> None:
        make_model(self.folder / "random", codebooks.VOCAB_SIZE)
        self.write("general", 128, 1, (3, 5, 7, 9))
        self.write("train", 128, 2, (4,))
        held_out = self.write("test", 32, 3, (4,))
        (self.folder / "run.toml").write_text(RUN)
        check = reprise("check", "run.toml", "model.path=random", "--world", 2, folder=self.folder)
        self.assertIn("1,027", check)

        # A base that knows sounds and pictures, by full cross-entropy; then a store from it, and training on another pitch.
        train = ("train", "run.toml", "replay.normalization=full", 'replay.store=""', "model.path=random", "data.train=general", "run.folder=first",
                 "train.steps=50", "optimizer.lr=1e-2")
        reprise(*train, ranks=2, folder=self.folder)
        reprise("export", "--run", "first", "--out", "base", folder=self.folder)
        self.assertEqual(sorted(f.name for f in (self.folder / "base").iterdir()), ["config.json", "model.safetensors"])
        reprise("collect", "run.toml", ranks=2, folder=self.folder)
        reprise("train", "run.toml", ranks=2, mpi=True, folder=self.folder)
        reprise("export", "--run", "run", "--out", "trained", folder=self.folder)
        random, base, trained = self.loss("random"), self.loss("base"), self.loss("trained")
        self.assertAlmostEqual(random, 6.93, delta=0.1)  # ln 1027
        self.assertLess(base, random - 1.0)
        self.assertLess(trained, base - 0.2)

        out = self.folder / "answers.jsonl"
        reprise("generate", "--model", "trained", "--data", "test", "--max-tokens", 8, "--out", out, "--tensor", 2, ranks=2,
                folder=self.folder)
        answers = [json.loads(line) for line in out.read_text().splitlines()]
        self.assertEqual(len(answers), len(held_out))
        drawn = [token for answer in answers[1::2] for token in answer["tokens"]]
        pictures = range(codebooks.IMAGE_BEGIN, codebooks.AUDIO_CODES + codebooks.IMAGE_CODES)
        self.assertGreater(sum(token in pictures for token in drawn), 0.9 * len(drawn), "after [IMAGE] come patches")


if __name__ == "__main__":
    unittest.main()
