import contextlib
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
from support import make_tokenizer

from reprise.__main__ import main
from reprise.facts import SUFFIXES
from reprise.indexed_dataset import IndexedDatasetWriter, read_documents, read_weights
from reprise.prepare import DataError, Tokenizer, prepare
from reprise.progress import Progress


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
        with self.assertRaisesRegex(DataError, r"a.jsonl:3: not UTF-8 \(byte 12"):
            self.prepare(path)
        statistics, documents = self.prepare(path, sequence_length=16, skip_bad=True)
        self.assertEqual((statistics.invalid_utf8, statistics.bad_lines), (1, 1))
        self.assertEqual(statistics.dropped_empty, 1)
        self.assertEqual(statistics.longer_than_sequence, 1)
        self.assertEqual(len(documents), 1)

    def test_bad_lines_are_refused_with_file_and_line_or_counted(self) -> None:
        good = {"prompt": "a", "completion": "b"}
        for bad, part in (("{", "not JSON"), ('{"txt": "x"}', "it has 'txt'"), ('{"prompt": 1, "completion": "x"}', "prompt"),
                          ("[1]", "not a list"), ('{"messages": []}', "not empty"), ('{"messages": [{"role": 1}]}', "[0] wants"),
                          ('{"text": "x", "weight": -1}', "weight"), ('{"text": "x", "weight": NaN}', "weight"),
                          ('{"text": "\\ud800"}', "surrogate"), ("[" * 100000, "not JSON"),
                          ('{"messages": [{"role": "user"}], "tools": 3}', "tools")):
            path = self.write("a.jsonl", good, bad, good)
            with self.assertRaises(DataError) as caught:
                self.prepare(path)
            self.assertIn("a.jsonl:2", str(caught.exception))
            self.assertIn(part, str(caught.exception))
            self.assertEqual(list(self.folder.glob("out*")), [], "nothing half-written stays")
            statistics, documents = self.prepare(path, skip_bad=True)
            self.assertEqual((statistics.bad_lines, len(documents)), (1, 2))
            self.assertIn("a.jsonl:2", statistics.examples["bad_lines"][0])
            for left in self.folder.glob("out*"):
                left.unlink()

    def test_texts_and_weights(self) -> None:
        path = self.write("a.jsonl", {"text": "abc"}, {"text": "de", "weight": 2.0}, {"prompt": "f", "completion": "g", "weight": 0})
        _, documents = self.prepare(path)
        self.assertEqual([self.text(tokens) for tokens, _ in documents], ["abc<|end|>", "de<|end|>", "fg<|end|>"])
        self.assertEqual(documents[0][1].tolist(), [0, 1, 1, 1])
        self.assertEqual([w.tolist() for w in read_weights(self.folder / "out")], [[1] * 4, [2] * 3, [0] * 3])
        self.prepare(self.write("b.jsonl", {"text": "abcdef"}), split=3)
        self.assertIsNone(read_weights(self.folder / "out"), "the weights of the earlier data are gone")
        self.assertEqual([len(t) for t, _ in read_documents(self.folder / "out")], [3, 3])

    def test_gzip_is_read_and_others_are_refused(self) -> None:
        plain = self.write("a.jsonl", *({"text": f"text {i}"} for i in range(50)))
        _, expected = self.prepare(plain)
        packed = self.folder / "b.jsonl.gz"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        _, documents = self.prepare(packed)
        self.assertEqual([t.tolist() for t, _ in documents], [t.tolist() for t, _ in expected])
        text = self.folder / "c.txt.gz"
        text.write_bytes(gzip.compress(b"abc"))
        self.assertEqual(self.text(self.prepare(text)[1][0][0]), "abc<|end|>")
        packed.write_bytes(packed.read_bytes()[:-20])
        text.write_bytes(b"abc")
        for file, part in ((packed, "not a whole gzip"), (text, "not a whole gzip"), (self.write("d.json", "[]"), "JSON object a line"),
                           (self.write("e.jsonl.zst", ""), ".zst")):
            with self.assertRaisesRegex(DataError, part):
                self.prepare(file)

    def test_the_output_is_the_same_for_any_number_of_workers(self) -> None:
        lines = [{"prompt": f"question {i} " + "x" * (i % 900), "completion": f"answer {i}", "weight": 1 + i % 2} for i in range(300)]
        files = [self.write("a.jsonl", *lines), self.write("b.txt", "some text\n"), self.write("c.jsonl", *lines[:50])]
        patches = [mock.patch("reprise.prepare._BYTES_PER_WORKER", 1), mock.patch("reprise.sources.UNIT_BYTES", 10000)]
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)
        results = []
        for workers in (1, 3):
            statistics = prepare(files, self.tokenizer_folder, self.folder / f"out{workers}", quiet=True, workers=workers)
            results.append((statistics, [(self.folder / f"out{workers}{s}").read_bytes() for s in SUFFIXES]))
        self.assertEqual(results[0], results[1])
        self.write("b.jsonl", *lines, "{")
        with self.assertRaisesRegex(DataError, "b.jsonl:301: not JSON"):
            prepare([self.folder / "b.jsonl"], self.tokenizer_folder, self.folder / "bad", quiet=True, workers=2)
        self.assertEqual(list(self.folder.glob("bad*")), [])

    def test_a_second_run_with_the_same_inputs_does_nothing(self) -> None:
        path = self.write("a.jsonl", {"prompt": "ab", "completion": "cd"})
        arguments = ["prepare", str(path), "--tokenizer", str(self.tokenizer_folder), "--out", str(self.folder / "out")]

        def run(*more: str) -> bool:
            """Whether it encoded."""
            before = os.stat(self.folder / "out.bin").st_ino if (self.folder / "out.bin").exists() else 0
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                self.assertEqual(main([*arguments, *more]), 0)
            self.assertIn("1 documents", printed.getvalue())
            encoded = os.stat(self.folder / "out.bin").st_ino != before
            self.assertEqual("same inputs" in printed.getvalue(), not encoded)
            return encoded

        self.assertTrue(run())
        self.assertFalse(run())
        self.assertTrue(run("--force"))
        self.assertTrue(run("--train-on", "all"))
        self.assertTrue(run())
        os.utime(path, ns=(1, 1))
        self.assertFalse(run(), "another time, but the same content")
        self.write("a.jsonl", {"prompt": "ab", "completion": "ce"})
        self.assertTrue(run())
        (self.folder / "out.bin").write_bytes(b"")
        self.assertTrue(run(), "a file of the prefix is not what it was")
        (self.tokenizer_folder / "generation_config.json").write_text('{"eos_token_id": [3]}')
        self.assertTrue(run())
        (self.folder / "out.json").write_text('{"own": 1}')
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            self.assertEqual(main(arguments), 3)
        self.assertIn("was not written by prepare", complaint.getvalue())

    def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        for stream, begins, ends in ((io.StringIO(), "prepare:  50 %", "left\n"), (Terminal(), "\r[==========          ]", "\r\033[K")):
            with mock.patch("time.monotonic", side_effect=[100.0, 100.05, 120.0]):
                progress = Progress(4_000_000, stream=stream)
                progress.update(1_000_000, 500)  # too early to be worth a line
                self.assertEqual(stream.getvalue(), "")
                progress.update(2_000_000, 1000)
                progress.finish()
            self.assertTrue(stream.getvalue().startswith(begins), stream.getvalue())
            self.assertTrue(stream.getvalue().endswith(ends))
            self.assertIn("2 of 4 MB  1,000 tokens  0.1 MB/s", stream.getvalue())
            self.assertIn("20 s left", stream.getvalue())

    def test_one_writer_a_prefix(self) -> None:
        path = self.write("a.jsonl", {"text": "abc"})
        with IndexedDatasetWriter(self.folder / "out", 100):
            with self.assertRaisesRegex(DataError, "another process"):
                self.prepare(path)
        self.prepare(path)

    def test_an_interrupted_run_leaves_the_earlier_data(self) -> None:
        self.prepare(self.write("a.jsonl", {"text": "abc"}))
        before = {f.name: f.read_bytes() for f in self.folder.glob("out*")}
        path = self.write("big.jsonl", *({"text": "x" * 2000} for _ in range(2200)))
        process = subprocess.Popen([sys.executable, "-m", "reprise", "prepare", path, "--tokenizer", self.tokenizer_folder, "--out",
                                    self.folder / "out", "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        part = self.folder / "out.bin.part"
        while not (part.exists() and part.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 143, errors)
        self.assertEqual({f.name: f.read_bytes() for f in self.folder.glob("out*")}, before)

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

    def test_no_second_bos_token_is_put_before_a_text(self) -> None:
        self.tokenizer_folder = make_tokenizer(self.folder / "bos", bos_token="<s>", add_bos_token=True)
        statistics, documents = self.prepare(self.write("a.jsonl", {"prompt": "<s>a", "completion": "b"}, {"text": "c"}, {"text": "<s>d"}))
        self.assertEqual([self.text(tokens) for tokens, _ in documents], ["<s>ab<|end|>", "<s>c<|end|>", "<s>d<|end|>"])
        self.assertEqual((statistics.double_bos_prevented, statistics.double_bos), (2, 0))
        template = self.write("template.jinja", "<s>{% for m in messages %}{{ m.content }}{% endfor %}")
        messages = [{"role": "user", "content": "<s>q"}, {"role": "assistant", "content": "x"}]
        statistics, _ = self.prepare(self.write("a.jsonl", {"messages": messages}), template=template)
        self.assertEqual(statistics.double_bos, 1)

    def test_a_bos_token_of_the_post_processor_counts(self) -> None:
        from tokenizers import Tokenizer as Core, processors

        core = Core.from_file(str(self.tokenizer_folder / "tokenizer.json"))
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
        self.tokenizer_folder = make_tokenizer(self.folder / "bos", bos_token="<s>")
        core.save(str(self.tokenizer_folder / "tokenizer.json"))
        _, documents = self.prepare(self.write("a.jsonl", {"text": "c"}))
        self.assertEqual(self.text(documents[0][0]), "<s>c<|end|>")

    def test_end_tokens_are_those_of_the_program(self) -> None:
        self.assertEqual(self.tokenizer.end_texts, ("<|end|>",))
        (self.tokenizer_folder / "config.json").write_text('{"eos_token_id": 3}')
        self.assertEqual(Tokenizer(self.tokenizer_folder).end_ids, {3, self.tokenizer.eos})
        (self.tokenizer_folder / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
        self.assertEqual(Tokenizer(self.tokenizer_folder).end_ids, {4, 5, self.tokenizer.eos})

    def test_an_end_that_is_there_is_not_written_twice(self) -> None:
        _, documents = self.prepare(self.write("a.jsonl", {"prompt": "a", "completion": "b<|end|>"}, {"text": "c<|end|>"}))
        self.assertEqual([self.text(tokens) for tokens, _ in documents], ["ab<|end|>", "c<|end|>"])

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
