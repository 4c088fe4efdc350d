"""Multiple choice beside the same computed with transformers as lm-evaluation-harness does it."""

import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from models import TOKENS, make_model, run, run_reprise
from transformers import AutoTokenizer

QUESTIONS = [("the cat", ["sat on the mat", "ran", "flew far away"], 0), ("a dog ", ["barks", "is blue, and so on", "x", "meows"], 0),
             ("one and two are", ["three", "vier", "fünf"], 1), ("", ["a", "bc"], 1), ("q: 5 + 5\na:", ["10", "9", "11", "12"], 3)] * 5


class ChoicesTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.model_folder = self.folder / "model"
        self.model = make_model(self.model_folder, "llama", max_position_embeddings=64)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model_folder)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def likelihood(self, context: str, continuation: str, max_length: int) -> float:
        """One request of the harness: boundary, truncation from the left, sum of log-softmax."""
        if context == "":
            first, rest = [self.tokenizer.eos_token_id], self.tokenizer.encode(continuation)
        else:
            stripped = context.rstrip()
            continuation = context[len(stripped):] + continuation
            first = self.tokenizer.encode(stripped)
            rest = self.tokenizer.encode(stripped + continuation)[len(first):]
        tokens = (first + rest)[-(max_length + 1):]
        with torch.no_grad():
            logits = self.model(torch.tensor([tokens[:-1]])).logits[0, :, :TOKENS].double()
        picked = torch.log_softmax(logits, -1)[-len(rest):].gather(-1, torch.tensor(rest)[:, None])
        return picked.sum().item()

    def test_scores_accuracies_and_errors_are_those_of_the_harness(self) -> None:
        questions = [(f"{i} {context}" if context else "", choices, answer) for i, (context, choices, answer) in enumerate(QUESTIONS)]
        source, items = self.folder / "in.jsonl", self.folder / "items.jsonl"
        source.write_text("".join(json.dumps({"context": c, "choices": o, "answer": a}) + "\n" for c, o, a in questions))
        run([sys.executable, "-m", "reprise", "choices", source, "--tokenizer", self.model_folder, "--out", items])
        for max_length in (64, 21):
            likelihoods = [[self.likelihood(context, " " + choice, max_length) for choice in choices] for context, choices, _ in questions]

            def stated(length) -> tuple[float, float]:
                right = [float(max(range(len(o)), key=lambda i: scores[i] / length(o[i])) == a)
                         for scores, (_, o, a) in zip(likelihoods, questions)]
                mean = sum(right) / len(right)
                return mean, math.sqrt(sum((r - mean) ** 2 for r in right) / (len(right) - 1)) / math.sqrt(len(right))

            for tensor, ranks in ((1, 1), (2, 2), (2, 4)):
                with self.subTest(max_length=max_length, tensor=tensor, ranks=ranks):
                    scores = self.folder / "scores.jsonl"
                    printed = run_reprise("eval", "--model", self.model_folder, "--choices", items, "--sequence-length", max_length, "--tensor",
                                          tensor, "--ranks", ranks, "--threads", 1, "--per-sample", scores, "--json")
                    result = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
                    for line, expected in zip(map(json.loads, scores.read_text().splitlines()), likelihoods, strict=True):
                        torch.testing.assert_close(torch.tensor(line["log_likelihood"]), torch.tensor(expected), rtol=1e-5, atol=1e-4)
                    for name, length in (("acc", lambda text: 1), ("acc_norm", len), ("acc_bytes", lambda text: len(text.encode()))):
                        mean, error = stated(length)
                        self.assertAlmostEqual(result[name], mean)
                        self.assertAlmostEqual(result[f"{name}_stderr"], error)
                    self.assertEqual(result["items"], len(questions))
                    self.assertEqual(result["truncated"] > 0, max_length == 21)


if __name__ == "__main__":
    unittest.main()
