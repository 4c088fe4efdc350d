"""A model with more rows of embedding and head than its tokenizer has ids, the rows beyond louder than all others: never in a softmax,
never collected, never generated, never moved."""

import json
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np
import torch
from models import TOKENS, make_model, random_documents, run_reprise, write_dataset
from safetensors.torch import load_file

ROWS = 400  # over 4 ranks: the last holds padding alone


class PaddedVocabularyTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.model = self.folder / "model"
        model = make_model(self.model, "qwen3", vocab_size=ROWS)
        with torch.no_grad():
            model.lm_head.weight[TOKENS:] *= 100.0
        model.save_pretrained(self.model)
        self.data = write_dataset(self.folder / "data", random_documents([12, 30, 7, 19], TOKENS))

    def tearDown(self) -> None:
        self._folder.cleanup()

    def run_file(self, *overrides: object) -> Path:
        path = self.folder / "run.toml"
        path.unlink(missing_ok=True)
        run_reprise("init", path, f"model.path={self.model}", f"data.train={self.data}", "train.global_batch=4", "train.steps=2",
                    "data.sequence_length=64", f"run.folder={self.folder / 'run'}", *overrides)
        return path

    def collect(self, tensor: int) -> dict[tuple[int, int], list[int]]:
        store = self.folder / f"store{tensor}"
        run_file = self.run_file(f"replay.store={store}", f"parallel.tensor={tensor}", "replay.tau=1.0", "replay.k_max=300")
        run_reprise("collect", run_file, "--ranks", tensor, "--threads", 1)
        manifest = json.loads((store / "manifest.json").read_text())
        self.assertEqual(manifest["provenance"]["vocab_size"], str(TOKENS))
        sets = {}
        for file in store.glob("*.h5"):
            with h5py.File(file) as shard:
                ids, ends, gaps = shard["sample_id"][:], shard["token_ptr"][:], shard["gap"][:]
                starts, positions = shard["id_ptr"][:], shard["position"][:]
                for s, sample in enumerate(ids):
                    for t in range(ends[s], ends[s + 1]):
                        sets[int(sample), int(positions[t])] = np.cumsum(gaps[starts[t]:starts[t + 1]]).tolist()
        return sets

    def test_no_padding_row_is_collected(self) -> None:
        first = self.collect(1)
        self.assertEqual(len(first), 12 + 30 + 7 + 19 - 4)
        for ids in first.values():
            self.assertEqual(ids, list(range(TOKENS)))
        for tensor in (2, 4):
            self.assertEqual(self.collect(tensor), first)

    def test_no_padding_row_is_trained(self) -> None:
        """Gradients and moments are zero there for every head, also with sampled negatives."""
        self.collect(2)
        for normalization, more in (("tile", ["replay.negatives=50"]), ("full", [])):
            run_file = self.run_file(f"replay.store={self.folder / 'store2'}", "parallel.tensor=2", "replay.tau=1.0",
                                     "replay.k_max=300", f"replay.normalization={normalization}", *more)
            run_reprise("train", run_file, "--fresh", "--ranks", 2, "--threads", 1)
            self.assert_moments_at_rest()
            self.assert_padding_at_rest()

    def assert_moments_at_rest(self) -> None:
        """Of ids both moments moved, of padding rows not one element."""
        folder = self.folder / "run/checkpoints/step-00000002"
        manifest, ids = json.loads((folder / "manifest.json").read_text()), 0.0
        for file in manifest["files"]:
            tensors = load_file(folder / file["name"])
            for parameter, first_row, _, first_col, end_col, begin, end in file["pieces"]:
                name = manifest["parameters"][parameter]["name"]
                if name not in ("model.embed_tokens.weight", "lm_head.weight"):
                    continue
                rows = first_row + torch.arange(begin, end) // (end_col - first_col)
                for moment in ("exp_avg", "exp_avg_sq"):
                    values = tensors[f"{name}/{moment}/{begin}"].flatten()
                    self.assertEqual(float(values[rows >= TOKENS].abs().sum()), 0.0)
                    ids += float(values[rows < TOKENS].abs().sum())
        self.assertGreater(ids, 0.0)

    def assert_padding_at_rest(self) -> None:
        out = self.folder / "out"
        run_reprise("export", "--run", self.folder / "run", "--out", out)
        after, before = load_file(out / "model.safetensors"), load_file(self.model / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            self.assertTrue(torch.equal(after[name][TOKENS:], before[name][TOKENS:]))
            self.assertFalse(torch.equal(after[name][:TOKENS], before[name][:TOKENS]))
        for file in out.iterdir():
            file.unlink()

    def test_no_padding_row_is_generated(self) -> None:
        for more in ((), ("--temperature", 1.0)):
            texts = [run_reprise("generate", "--model", self.model, "--prompt", "1,2,3", "--max-tokens", 20, "--ranks", tensor,
                                 "--tensor", tensor, "--threads", 1, *more) for tensor in (1, 4)]
            tokens = json.loads(texts[0][texts[0].index("{"):texts[0].index("}") + 1])["tokens"]
            self.assertEqual(len(tokens), 20)
            self.assertLess(max(tokens), TOKENS)

    def test_check_counts_them(self) -> None:
        run_file = self.run_file()
        self.assertIn("vocabulary: 260 of 400 rows, 140 padding rows never enter a softmax", run_reprise("check", run_file))
        self.assertIn("vocabulary: 400 rows, all of them in the softmax", run_reprise("check", run_file, "model.vocab_size=400"))
        self.assertIn("leaves out ids of the tokenizer", run_reprise("check", run_file, "model.vocab_size=256", "data.train=" + str(
            write_dataset(self.folder / "small", random_documents([9, 9, 9, 9], 256)))))
        self.assertIn("model.vocab_size (--vocab-size) = 401", run_reprise("check", run_file, "model.vocab_size=401", fails=True))

    def test_ids_of_padding_rows_are_refused(self) -> None:
        bad = write_dataset(self.folder / "bad", [[1, 2, TOKENS]], ROWS)
        for words in (("check", self.run_file(), f"data.train={bad}"), ("eval", "--model", self.model, "--data", bad),
                      ("generate", "--model", self.model, "--prompt", f"1,{TOKENS}")):
            self.assertIn(str(TOKENS), run_reprise(*words, fails=True))
        run_reprise("eval", "--model", self.model, "--data", bad, "--vocab-size", ROWS)


if __name__ == "__main__":
    unittest.main()
