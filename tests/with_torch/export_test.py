"""Exports beside transformers: byte-identical after no step in every dtype, and the same log-probabilities after training."""

import json
import shutil
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
import transformers
from models import FAMILIES, TOKENS, load_weights, log_probs, make_model, random_documents, run_reprise, write_dataset


class ExportTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.documents = random_documents([9, 30, 2, 17], TOKENS)
        self.data = write_dataset(self.folder / "data", self.documents)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def train(self, model: Path, steps: int, *overrides: str) -> Path:
        """Full cross-entropy, two ranks as threads; an lr of 0 changes no bit."""
        run_file, run = self.folder / "run.toml", self.folder / "run"
        run_file.unlink(missing_ok=True)
        shutil.rmtree(run, ignore_errors=True)
        run_reprise("init", run_file, f"model.path={model}", f"data.train={self.data}", f"run.folder={run}", "replay.store=",
                    "replay.normalization=full", f"train.steps={steps}", "train.global_batch=4", "data.sequence_length=64",
                    "parallel.tensor=2", *overrides)
        run_reprise("train", run_file, "--ranks", "2", "--threads", "1")
        return run

    def assert_same_tensors(self, got: Path, want: Path) -> None:
        a, b = load_weights(got), load_weights(want)
        self.assertEqual(set(a), set(b))
        for name, tensor in b.items():
            self.assertEqual(a[name].dtype, tensor.dtype, name)
            self.assertTrue(torch.equal(a[name].view(torch.uint8), tensor.view(torch.uint8)), name)

    def assert_same_companions(self, got: Path, want: Path, *but: str) -> None:
        names = {file.name for file in want.iterdir() if "safetensors" not in file.name} - set(but)
        self.assertLess({"config.json", "tokenizer.json", "tokenizer_config.json"} - set(but), names)
        for name in names:
            self.assertEqual((got / name).read_bytes(), (want / name).read_bytes(), name)

    def test_after_no_change_every_tensor_and_file_is_the_same_in_every_dtype(self) -> None:
        for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
            family = FAMILIES[number]
            model, out = self.folder / family, self.folder / f"{family}-out"
            make_model(model, family, dtype=dtype, tie_word_embeddings=number == 1, max_shard_size="30KB", vocab_size=300)
            self.assertTrue((model / "model.safetensors.index.json").exists())
            (model / "chat_template.jinja").write_text("{{ messages }}")
            run = self.train(model, 1, "optimizer.lr=0.0")
            run_reprise("export", "--run", run, "--out", out)
            self.assert_same_tensors(out, model)
            self.assert_same_companions(out, model)

    def test_padding_rows_leave_training_as_they_came(self) -> None:
        model, out = self.folder / "model", self.folder / "out"
        before = make_model(model, "qwen3", vocab_size=300, tie_word_embeddings=False).state_dict()
        run = self.train(model, 3, "optimizer.lr=1e-2", "optimizer.weight_decay=0.5")
        run_reprise("export", "--run", run, "--out", out, "--dtype", "float32")
        after = load_weights(out)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            self.assertTrue(torch.equal(after[name][TOKENS:], before[name][TOKENS:]), name)
            self.assertFalse(torch.equal(after[name][:TOKENS], before[name][:TOKENS]), name)

    def test_shards_have_the_index_that_transformers_writes(self) -> None:
        model, out, theirs = (self.folder / name for name in ("model", "out", "theirs"))
        make_model(model, "llama")
        run = self.train(model, 1)
        run_reprise("export", "--run", run, "--out", out, "--dtype", "float32", "--max-shard-size", "40KB")
        index = json.loads((out / "model.safetensors.index.json").read_text())
        tensors = load_weights(out)
        self.assertEqual(index["metadata"]["total_size"], sum(t.numel() * 4 for t in tensors.values()))
        self.assertEqual(set(index["weight_map"]), set(tensors))
        files = sorted(set(index["weight_map"].values()))
        self.assertEqual(files, [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))])
        self.assertGreater(len(files), 1)
        for file in files:
            held = [t.numel() * 4 for name, t in tensors.items() if index["weight_map"][name] == file]
            self.assertTrue(sum(held) <= 40_000 or len(held) == 1)
        transformers.AutoModelForCausalLM.from_pretrained(out).save_pretrained(theirs)
        self.assert_same_tensors(theirs, out)
        message = run_reprise("export", "--run", run, "--out", self.folder / "no", "--max-shard-size", "5 apples", fails=True)
        self.assertIn('"5 apples" is no size', message)

    def test_trained_models_give_transformers_the_log_probabilities_of_eval(self) -> None:
        for family in FAMILIES:
            with self.subTest(family=family):
                model, out, file = self.folder / family, self.folder / f"{family}-out", self.folder / "log_probs.npy"
                make_model(model, family, vocab_size=300 if family == "qwen3" else TOKENS)
                run = self.train(model, 2, "optimizer.lr=1e-2")
                run_reprise("export", "--run", run, "--out", out, "--dtype", "float32")
                run_reprise("eval", "--model", out, "--data", self.data, "--per-token", file, "--ranks", "2", "--tensor", "2",
                            "--threads", "1")
                exported = transformers.AutoModelForCausalLM.from_pretrained(out)
                with torch.no_grad():
                    want = torch.cat([log_probs(exported, document, TOKENS) for document in self.documents])
                    before = transformers.AutoModelForCausalLM.from_pretrained(model)
                    self.assertGreater((log_probs(before, self.documents[1], TOKENS) - want[8:37]).abs().max(), 0.1)
                np.testing.assert_allclose(np.load(file), want.numpy(), rtol=0, atol=1e-4)


if __name__ == "__main__":
    unittest.main()
