import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
from support import make_tokenizer

from reprise.__main__ import main
from reprise.indexed_dataset import read_documents
from reprise.prepare import DataError, Tokenizer, prepare


class PrepareTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.tokenizer_folder = make_tokenizer(self.folder / "tokenizer")
        self.tokenizer = Tokenizer(self.tokenizer_folder)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def write(self, name: str, *lines: object) -> Path:
        path = self.folder / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    def prepare(self, *files: Path, **options):
        statistics = prepare(list(files), self.tokenizer_folder, self.folder / "out", quiet=True, **options)
        return statistics, read_documents(self.folder / "out")

    def text(self, tokens) -> str:
        return self.tokenizer.core.decode(list(tokens), skip_special_tokens=False)

    def test_a_pair_trains_on_the_completion_and_the_end(self) -> None:
        statistics, documents = self.prepare(self.write("a.jsonl", {"prompt": "ab", "completion": "cde"}))
        tokens, mask = documents[0]
        self.assertEqual(self.text(tokens), "abcde<|end|>")
        self.assertEqual(mask.tolist(), [0, 0, 1, 1, 1, 1])
        self.assertEqual((statistics.documents, statistics.tokens, statistics.targets), (1, 6, 4))

    def test_messages_train_on_assistant_turns_only(self) -> None:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "xy"}, {"role": "user", "content": "r"},
                    {"role": "assistant", "content": "z"}]
        _, documents = self.prepare(self.write("a.jsonl", {"messages": messages}))
        tokens, mask = documents[0]
        trained = self.text(tokens[mask == 1])
        self.assertEqual(trained, "xy<|end|>z<|end|>")
        self.assertEqual(tokens[-1], self.tokenizer.eos)

    def test_text_is_cut_and_every_token_but_the_first_is_trained(self) -> None:
        path = self.write("a.txt", "0123456789")
        _, documents = self.prepare(path, split=4)
        self.assertEqual([len(tokens) for tokens, _ in documents], [4, 4, 4])
        for _, mask in documents:
            self.assertEqual(mask[0], 0)
            self.assertTrue((mask[1:] == 1).all())

    def test_what_cannot_be_used_is_counted(self) -> None:
        path = self.folder / "a.jsonl"
        path.write_bytes(json.dumps({"prompt": "a", "completion": "b" * 50}).encode() + b"\r\n\n"
                         + b'{"prompt": "\xff", "completion": "x"}\n' + json.dumps({"prompt": "", "completion": ""}).encode() + b"\n")
        statistics, documents = self.prepare(path, sequence_length=16)
        self.assertEqual(statistics.invalid_utf8, 1)
        self.assertEqual(statistics.dropped_empty, 1)
        self.assertEqual(statistics.longer_than_sequence, 1)
        self.assertEqual(len(documents), 1)

    def test_bad_lines_are_refused_with_file_and_line(self) -> None:
        good = {"prompt": "a", "completion": "b"}
        for bad, part in (("{", "not JSON"), ('{"text": "x"}', "messages"), ('{"prompt": 1, "completion": "x"}', "prompt")):
            with self.assertRaises(DataError) as caught:
                self.prepare(self.write("a.jsonl", good, bad))
            self.assertIn("a.jsonl:2", str(caught.exception))
            self.assertIn(part, str(caught.exception))
            self.assertEqual(list(self.folder.glob("out*")), [], "nothing half-written stays")

    def test_nothing_to_train_on_and_missing_files_are_errors(self) -> None:
        with self.assertRaisesRegex(DataError, "no sample"):
            self.prepare(self.write("empty.jsonl"))
        with self.assertRaisesRegex(DataError, "no such file"):
            self.prepare(self.folder / "missing.jsonl")

    def test_a_tokenizer_without_end_token_is_refused(self) -> None:
        folder = make_tokenizer(self.folder / "other", eos_token=None)
        with self.assertRaisesRegex(DataError, "eos_token"):
            Tokenizer(folder)
        with self.assertRaisesRegex(DataError, "tokenizer.json"):
            Tokenizer(self.folder / "nowhere")

    def test_two_bos_tokens_are_noticed(self) -> None:
        self.tokenizer_folder = make_tokenizer(self.folder / "bos", bos_token="<s>", add_bos_token=True)
        statistics, _ = self.prepare(self.write("a.jsonl", {"prompt": "<s>a", "completion": "b"}))
        self.assertEqual(statistics.double_bos, 1)

    def test_a_template_that_rewrites_earlier_turns_is_refused(self) -> None:
        template = self.write("template.jinja", "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
        with self.assertRaisesRegex(DataError, "rewrites"):
            self.prepare(self.write("a.jsonl", {"messages": messages * 2}), template=template)

    def test_the_command_prints_a_sample_and_writes_the_facts(self) -> None:
        path = self.write("a.jsonl", {"prompt": "ab", "completion": "cd"})
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = main(["prepare", str(path), "--tokenizer", str(self.tokenizer_folder), "--out", str(self.folder / "out")])
        self.assertEqual(code, 0)
        self.assertIn("ab[[cd<|end|>]]", printed.getvalue())
        facts = json.loads((self.folder / "out.json").read_text())
        self.assertEqual(facts["statistics"]["documents"], 1)
        self.assertEqual(facts["vocab_size"], self.tokenizer.vocab_size)
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            self.assertEqual(main(["prepare", "nowhere.txt", "--tokenizer", str(self.tokenizer_folder), "--out", "x"]), 3)
        self.assertIn("nowhere.txt", complaint.getvalue())

    def test_the_index_is_megatrons(self) -> None:
        self.prepare(self.write("a.jsonl", {"prompt": "ab", "completion": "c"}, {"prompt": "d", "completion": "e"}))
        raw = (self.folder / "out.idx").read_bytes()
        self.assertEqual(raw[:9], b"MMIDIDX\x00\x00")
        self.assertEqual(int.from_bytes(raw[9:17], "little"), 1)
        self.assertEqual(raw[17], 8)  # uint16: the vocabulary is small
        self.assertEqual(np.frombuffer(raw, np.int32, 2, 34).tolist(), [4, 3])


if __name__ == "__main__":
    unittest.main()
