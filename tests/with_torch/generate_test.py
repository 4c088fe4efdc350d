"""Greedy continuations beside transformers' generate, and log-probabilities beside its logits, for every family at tensor 1 and 2."""

import json
import tempfile
import unittest
from pathlib import Path

import torch
from models import FAMILIES, TOKENS, log_probs, make_model, random_documents, run_reprise

NEW_TOKENS = 12


class GenerateTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.prompts = random_documents([3, 1, 9, 5, 17, 2], TOKENS)
        self.file = self.folder / "prompts.jsonl"
        self.file.write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in self.prompts))

    def tearDown(self) -> None:
        self._folder.cleanup()

    def generate(self, model: Path, tensor: int, *flags: object, max_tokens: int = NEW_TOKENS) -> list[dict]:
        out = self.folder / "out.jsonl"
        run_reprise("generate", "--model", model, "--prompts", self.file, "--max-tokens", max_tokens, "--tensor", tensor, "--ranks", tensor,
                    "--threads", 1, "--out", out, *flags)
        return [json.loads(line) for line in out.read_text().splitlines()]

    def test_greedy_texts_are_those_of_transformers(self) -> None:
        for family in FAMILIES:
            model = make_model(self.folder / family, family, tie_word_embeddings=family == "qwen2")
            expected = []
            for tokens in self.prompts:
                text = model.generate(torch.tensor([tokens]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
                expected.append(text[0, len(tokens):].tolist())
            for tensor in (1, 2):
                with self.subTest(family=family, tensor=tensor):
                    lines = self.generate(self.folder / family, tensor, "--batch", 4, "--log-probs")
                    self.assertEqual([line["tokens"] for line in lines], expected)
                    self.assertEqual([line["sample"] for line in lines], list(range(len(self.prompts))))
                    self.assertTrue(all(line["finish"] == "length" for line in lines))
                    with torch.no_grad():
                        for tokens, line in zip(self.prompts, lines):
                            wanted = log_probs(model, tokens + line["tokens"], TOKENS)[len(tokens) - 1:]
                            torch.testing.assert_close(torch.tensor(line["log_probs"]), wanted, rtol=0, atol=1e-4)

    def test_end_tokens_are_those_of_the_folder_and_of_the_flags(self) -> None:
        make_model(self.folder / "model", "llama")
        free = [line["tokens"] for line in self.generate(self.folder / "model", 1)]
        ends = [free[0][3], free[2][5]]
        (self.folder / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))

        def cut(tokens: list[int], stops: list[int]) -> list[int]:
            return next((tokens[:i] for i, token in enumerate(tokens) if token in stops), tokens)

        lines = self.generate(self.folder / "model", 1)
        self.assertEqual([line["tokens"] for line in lines], [cut(tokens, ends) for tokens in free])
        self.assertEqual((lines[0]["finish"], lines[0]["stop_id"]), ("stop", cut_token(free[0], ends)))
        self.assertEqual([line["tokens"] for line in self.generate(self.folder / "model", 1, "--ignore-eos")], free)
        stops = [free[1][1], free[4][2]]
        lines = self.generate(self.folder / "model", 1, "--ignore-eos", "--stop-ids", ",".join(map(str, stops)))
        self.assertEqual([line["tokens"] for line in lines], [cut(tokens, stops) for tokens in free])

    def test_samples_follow_the_distribution_that_transformers_processors_leave(self) -> None:
        """Chi-square of 3,000 first tokens against the probabilities after temperature, top-k and top-p of transformers."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        model = make_model(self.folder / "model", "qwen3", hidden_size=16, tie_word_embeddings=False)
        prompt, draws = self.prompts[0], 3000
        self.file.write_text(json.dumps({"tokens": prompt}) + "\n")
        with torch.no_grad():
            scores = model(torch.tensor([prompt])).logits[:, -1, :TOKENS].double()
        for temperature, top_k, top_p in ((4.0, 0, 1.0), (3.0, 40, 0.8)):
            warped = TemperatureLogitsWarper(temperature)(None, scores)
            warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
            warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
            probabilities = torch.softmax(warped, -1)[0]
            lines = self.generate(self.folder / "model", 2, "--temperature", temperature, "--top-k", top_k, "--top-p", top_p,
                                  "--num-samples", draws, "--batch", 500, "--ignore-eos", max_tokens=1)
            self.assertEqual([line["index"] for line in lines], list(range(draws)))
            counts = torch.zeros(TOKENS, dtype=torch.double)
            for line in lines:
                counts[line["tokens"][0]] += 1
            self.assertEqual(counts[probabilities == 0].sum().item(), 0)
            expected = draws * probabilities
            often = expected >= 5
            rest = draws - expected[often].sum()
            chi_square = ((counts[often] - expected[often]) ** 2 / expected[often]).sum()
            if rest > 1:
                chi_square += (draws - counts[often].sum() - rest) ** 2 / rest
            freedom = int(often.sum())
            # Mean n, variance 2 n: beyond five deviations once in a million.
            self.assertLess(chi_square.item(), freedom + 5 * (2 * freedom) ** 0.5)


def cut_token(tokens: list[int], stops: list[int]) -> int:
    return next(token for token in tokens if token in stops)


if __name__ == "__main__":
    unittest.main()
