"""python -m reprise choices: boundaries, lengths and both kinds of lines."""

import io
import json
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from support import make_tokenizer

from reprise.__main__ import main
from reprise.choices import PairEncoder
from reprise.tokenizer import Tokenizer


class ChoicesTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        # Tokens that reach over the boundary: " th" and the like are merged.
        self.model = make_tokenizer(self.folder / "model", text_to_merge=" the cat sat on the mat. the dog sat. " * 20)
        self.tokenizer = Tokenizer(self.model)
        self.source, self.out = self.folder / "in.jsonl", self.folder / "out" / "items.jsonl"

    def tearDown(self) -> None:
        self._folder.cleanup()

    def prepare(self, *lines: object, model: Path | None = None, flags: tuple[str, ...] = ()) -> list[dict]:
        self.source.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        with redirect_stdout(io.StringIO()):
            code = main(["choices", str(self.source), "--tokenizer", str(model or self.model), "--out", str(self.out), *flags])
        self.assertEqual(code, 0)
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def refused(self, *lines: object) -> str:
        self.source.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        printed = io.StringIO()
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            code = main(["choices", str(self.source), "--tokenizer", str(self.model), "--out", str(self.out)])
        self.assertEqual(code, 3)
        self.assertFalse(self.out.exists())
        return printed.getvalue()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.core.encode(text, add_special_tokens=False).ids

    def test_a_choice_is_what_follows_the_ids_of_the_context_in_the_whole(self) -> None:
        [item] = self.prepare({"context": "the cat", "choices": ["sat on the mat.", "sät"], "answer": 1})
        self.assertEqual(item["context"], self.ids("the cat"))
        for choice, ids in zip(["sat on the mat.", "sät"], item["choices"]):
            whole = self.ids("the cat " + choice)
            self.assertEqual(ids, whole[len(self.ids("the cat")):])
        self.assertEqual(item["answer"], 1)
        self.assertEqual(item["choice_chars"], [15, 3])
        self.assertEqual(item["choice_bytes"], [15, 4])

    def test_blanks_at_the_end_of_a_context_belong_to_the_choice(self) -> None:
        [spaced] = self.prepare({"context": "the cat \n", "choices": ["sat", "mat"], "answer": 0}, flags=("--delimiter", ""))
        self.assertEqual(spaced["context"], self.ids("the cat"))
        self.assertEqual(spaced["choices"][0], self.ids("the cat \nsat")[len(self.ids("the cat")):])
        self.assertEqual(spaced["choice_chars"], [3, 3])

    def test_an_empty_context_becomes_the_begin_token_or_the_end_token(self) -> None:
        item = {"context": "", "choices": ["the cat", "the dog"], "answer": 0}
        self.assertEqual(self.prepare(item)[0]["context"], [self.tokenizer.eos])
        self.assertEqual(self.prepare(item)[0]["choices"][1], self.ids(" the dog"))
        begin = make_tokenizer(self.folder / "begin", bos_token="<s>")
        self.assertEqual(self.prepare(item, model=begin)[0]["context"], [Tokenizer(begin).bos])
        # A continuation that begins with that token lends it.
        self.assertEqual(PairEncoder(Tokenizer(begin)).pair("", "<s>a"), ([Tokenizer(begin).bos], Tokenizer(begin).encode("a")))

    def test_the_tokenizers_own_begin_token_comes_once(self) -> None:
        begin = make_tokenizer(self.folder / "begin", bos_token="<s>", add_bos_token=True)
        tokenizer = Tokenizer(begin)
        for context in ("the cat", "<s>the cat"):
            [item] = self.prepare({"context": context, "choices": ["sat", "mat"], "answer": 0}, model=begin)
            self.assertEqual(item["context"], [tokenizer.bos, *tokenizer.encode("the cat")])
            self.assertEqual(item["choices"][0], tokenizer.encode(" sat"))

    def test_contexts_may_differ_and_then_their_lengths_count(self) -> None:
        [item] = self.prepare({"context": ["the dog", "the other cat"], "choices": ["sat", "sat"], "answer": [0, 1]})
        self.assertEqual(item["context"], [self.ids("the dog"), self.ids("the other cat")])
        self.assertEqual(item["answer"], [0, 1])
        self.assertEqual(item["choice_chars"], [7, 13])

    def test_logged_samples_of_the_harness_give_the_same_items(self) -> None:
        plain = self.prepare({"context": "the cat", "choices": ["sat", "ran off"], "answer": 1},
                             {"context": ["the dog", "the cats"], "choices": ["sat.", "sat."], "answer": 1})
        pair = lambda context, text: {"arg_0": context, "arg_1": text}
        logged = self.prepare(
            {"doc": {}, "target": "1", "arguments": {"gen_args_0": pair("the cat", " sat"), "gen_args_1": pair("the cat", " ran off")}},
            {"doc": {"answer": "2"}, "target": "sat.",
             "arguments": {"gen_args_0": pair("the dog", " sat."), "gen_args_1": pair("the cats", " sat.")}})
        self.assertEqual(logged, plain)
        [by_text] = self.prepare({"doc": {}, "target": "sat", "arguments": [["the cat", " sat"], ["the cat", " ran off"]]})
        self.assertEqual(by_text["answer"], 0)

    def test_wrong_lines_are_named(self) -> None:
        good = {"context": "a", "choices": ["b", "c"], "answer": 0}
        for line, reason in (("{", "not JSON"), ([1], "wants"), ({**good, "answer": 2}, "index of one of 2"), ({**good, "answer": "b"}, "'b'"),
                             ({**good, "choices": ["b"]}, "two texts"), ({**good, "context": ["a", "b", "c"]}, "3 contexts for 2"),
                             ({**good, "label": 1}, "'label'"), ({**good, "choices": ["", "c"]}, "no length"),
                             ({**good, "context": " "}, "blank"), ({"arguments": {"x": 1}}, "log_samples"),
                             ({"arguments": [["", " b"], ["a", " b"]], "target": "0"}, "acc_mutual_info"),
                             ({**good, "answer": True}, "True")):
            message = self.refused(good, line)
            self.assertIn("in.jsonl:2: ", message)
            self.assertIn(reason, message)
        self.assertIn("no item", self.refused(""))


if __name__ == "__main__":
    unittest.main()
