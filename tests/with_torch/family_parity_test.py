"""Loss, log-probabilities and every gradient beside transformers, in awkward shapes, on 1, 2, 3 and 4 tensor-parallel ranks."""

import json
import tempfile
import unittest
from pathlib import Path

import torch
from models import TOKENS, dump_gradients, log_probs, make_model, random_documents, write_old_spelling
from safetensors.torch import load_file

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
LENGTHS = [23, 2, 14]


class FamilyParityTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.documents = random_documents(LENGTHS, TOKENS)
        generator = torch.Generator().manual_seed(7)
        self.weights = [torch.rand(length, generator=generator).tolist() for length in LENGTHS]

    def tearDown(self) -> None:
        self._folder.cleanup()

    def write_batch(self) -> Path:
        path = self.folder / "batch.json"
        path.write_text(json.dumps({"documents": self.documents, "weights": self.weights}))
        return path

    def expected(self, model: torch.nn.Module, vocab_size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """In float64, but for what transformers always does in float32: norms, rotation and softmax."""
        model = model.double()
        model.zero_grad()
        probabilities = [log_probs(model, document, vocab_size) for document in self.documents]
        weights = torch.cat([torch.tensor(weights[1:], dtype=torch.float64) for weights in self.weights])
        (-(weights * torch.cat(probabilities)).sum()).backward()
        return torch.cat(probabilities).detach(), {name: p.grad for name, p in model.named_parameters()}

    def check(self, family: str, tensor_sizes: tuple[int, ...], *, real_vocab_size: int = 0, old_spelling: bool = False,
              sequence_parallel: bool = False, **options: object) -> None:
        model = make_model(self.folder / "model", family, tokenizer=False, **options)
        if old_spelling:
            write_old_spelling(self.folder / "model")
        probabilities, gradients = self.expected(model, real_vocab_size or model.config.vocab_size)
        batch, out = self.write_batch(), self.folder / "out.safetensors"
        for tensor in tensor_sizes:
            with self.subTest(tensor=tensor):
                dump_gradients(self.folder / "model", batch, out, tensor, real_vocab_size, int(sequence_parallel and tensor > 1))
                got = load_file(out)
                torch.testing.assert_close(got.pop("log_probs").double(), probabilities, rtol=2e-5, atol=2e-5)
                self.assertEqual(set(got), set(gradients))
                for name, want in gradients.items():
                    difference = (got[name].double() - want).norm() / want.norm()
                    self.assertLess(difference, 2e-5, name)
                    torch.testing.assert_close(got[name].double(), want, rtol=1e-3, atol=1e-5 * want.abs().max().item(), msg=name)
                    if name in ("model.embed_tokens.weight", "lm_head.weight") and real_vocab_size:
                        self.assertEqual(got[name][real_vocab_size:].abs().sum(), 0.0, "padding rows have no gradient")

    def test_llama_with_biases_and_llama3_rope(self) -> None:
        self.check("llama", (1, 2, 4), attention_bias=True, mlp_bias=True, rope_parameters=dict(LLAMA3), head_dim=10,
                   hidden_size=28, intermediate_size=36, num_key_value_heads=2)

    def test_llama_of_transformers_4_with_sequence_parallelism(self) -> None:
        self.check("llama", (1, 2, 4), old_spelling=True, sequence_parallel=True, rope_parameters=dict(LLAMA3), rms_norm_eps=1e-5,
                   attention_bias=True, num_key_value_heads=1)

    def test_llama_with_three_key_value_heads_and_an_odd_intermediate_size(self) -> None:
        options = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 30, "head_dim": 6, "intermediate_size": 33}
        self.check("llama", (1, 3), tie_word_embeddings=True, **options)
        message = dump_gradients(self.folder / "model", self.folder / "batch.json", self.folder / "no", 2, fails=True)
        self.assertRegex(message, r"num_key_value_heads = 3|intermediate_size = 33")

    def test_mistral_with_one_key_value_head(self) -> None:
        self.check("mistral", (1, 2, 4), num_key_value_heads=1, head_dim=12, hidden_size=20, intermediate_size=28)

    def test_mistral_of_transformers_4_tied(self) -> None:
        self.check("mistral", (1, 4), old_spelling=True, tie_word_embeddings=True, num_key_value_heads=4)

    def test_qwen2_tied(self) -> None:
        self.check("qwen2", (1, 2, 4), tie_word_embeddings=True, hidden_size=24, intermediate_size=20, num_key_value_heads=4,
                   rope_parameters={"rope_type": "default", "rope_theta": 1e6})

    def test_qwen2_of_transformers_4_with_a_head_dim_of_its_own(self) -> None:
        self.check("qwen2", (1, 4), old_spelling=True, head_dim=14, num_key_value_heads=2)

    def test_qwen3(self) -> None:
        self.check("qwen3", (1, 2, 4), head_dim=16, hidden_size=20, intermediate_size=44, num_key_value_heads=2)

    def test_qwen3_of_transformers_4_tied_with_biases_and_sequence_parallelism(self) -> None:
        self.check("qwen3", (1, 4), old_spelling=True, sequence_parallel=True, tie_word_embeddings=True, attention_bias=True,
                   num_key_value_heads=1)

    def test_padding_rows_are_in_no_softmax(self) -> None:
        """61 rows over 4 ranks: the last holds padding alone."""
        self.documents = random_documents(LENGTHS, 37)
        for tied in (False, True):
            self.check("qwen3", (1, 2, 4), real_vocab_size=37, vocab_size=61, tie_word_embeddings=tied)


if __name__ == "__main__":
    unittest.main()
