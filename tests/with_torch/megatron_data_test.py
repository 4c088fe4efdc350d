"""Indexed data sets between reprise and megatron-core, both ways: tokens, lengths and documents are the same."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import unittest
from pathlib import Path

import h5py
import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from models import TOKENS, make_model, run, run_reprise
from support import make_tokenizer

from reprise.indexed_dataset import IndexedDatasetWriter, read_documents

INTEGER_TYPES = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16)
FLOAT_TYPES = (np.float32, np.float64)


def documents_below(limit: int, lengths: list[int], seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(limit) for _ in range(length)] for length in lengths]


def sample_hash(tokens: list[int]) -> int:
    """The hash of a sample in a replay store (docs/formats.md), its mask being 0, 1, 1, ..."""
    def hash_bytes(data: bytes, seed: int) -> int:
        bits = (1 << 64) - 1
        value = 0xCBF29CE484222325 ^ (seed * 0x9E3779B97F4A7C15 & bits)
        for byte in data:
            value = (value ^ byte) * 0x100000001B3 & bits
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = (value ^ value >> 33) * factor & bits
        return value ^ value >> 33

    mask = bytes([0] + [1] * (len(tokens) - 1))
    return hash_bytes(mask, hash_bytes(np.asarray(tokens, np.int32).tobytes(), 0))


def build_with_megatron(prefix: Path, documents: list[list[list[int]]], dtype: type) -> None:
    """documents[d] are the sequences of a document."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        for sequence in sequences:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def collected_documents(store: Path) -> dict[int, tuple[int, list[int]]]:
    """By sample id: its hash, and what it predicts, which is all its tokens but the first."""
    samples = {}
    for shard in json.loads((store / "manifest.json").read_text())["shards"]:
        with h5py.File(store / shard["file"], "r") as file:
            data = {name: dataset[:] for name, dataset in file.items()}
        for s, sample in enumerate(data["sample_id"]):
            begin, end = data["token_ptr"][s], data["token_ptr"][s + 1]
            assert data["position"][begin:end].tolist() == list(range(end - begin))
            samples[int(sample)] = int(data["sample_hash"][s]), data["gold"][begin:end].tolist()
    return samples


class MegatronData(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.temporary.name)
        make_model(cls.folder / "model", "llama")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.temporary.cleanup()

    def keys(self, name: str) -> list[str]:
        return [f"model.path={self.folder / 'model'}", f"data.train={self.folder / name}", "data.sequence_length=64",
                f"replay.store={self.folder / (name + '_store')}", "replay.k_max=4", "train.micro_batch=4",
                f"run.folder={self.folder / 'run'}"]

    def run_file(self, name: str) -> Path:
        path = self.folder / f"{name}.toml"
        path.unlink(missing_ok=True)
        run_reprise("init", path, *self.keys(name))
        return path

    def assert_megatron_reads(self, prefix: Path, documents: list[list[int]], dtype: type) -> None:
        dataset = IndexedDataset(str(prefix))
        self.assertEqual(dataset.index.dtype, dtype)
        self.assertEqual(len(dataset), len(documents))
        self.assertEqual(dataset.sequence_lengths.tolist(), [len(tokens) for tokens in documents])
        self.assertEqual(dataset.document_indices.tolist(), list(range(len(documents) + 1)))
        for tokens, read in zip(documents, dataset):
            self.assertEqual(read.tolist(), tokens)

    def test_megatron_reads_what_the_writer_writes(self) -> None:
        for vocab_size, dtype in ((65499, np.uint16), (128256, np.int32)):
            documents = documents_below(vocab_size, [5, 1, 17, 300])
            documents.append([0, vocab_size - 1])
            prefix = self.folder / f"written_{vocab_size}"
            with IndexedDatasetWriter(prefix, vocab_size) as writer:
                for tokens in documents:
                    writer.add(tokens, [0] + [1] * (len(tokens) - 1))
            self.assert_megatron_reads(prefix, documents, dtype)

    def test_megatron_reads_what_prepare_writes(self) -> None:
        source, prefix = self.folder / "pairs.jsonl", self.folder / "prepared"
        source.write_text("".join(json.dumps({"prompt": f"Question {i}? ", "completion": "ab" * (i + 1)}) + "\n" for i in range(9)))
        make_tokenizer(self.folder / "tokenizer")
        run([sys.executable, "-m", "reprise", "prepare", source, "--tokenizer", self.folder / "tokenizer", "--out", prefix])
        documents = [tokens.tolist() for tokens, _ in read_documents(prefix)]
        self.assertEqual(len(documents), 9)
        self.assertGreater(len(documents[8]), len(documents[0]))
        self.assert_megatron_reads(prefix, documents, np.uint16)

    def test_reprise_reads_every_integer_type_that_megatron_writes(self) -> None:
        self.assertEqual({DType.dtype_from_code(code.value) for code in DType}, set(INTEGER_TYPES) | set(FLOAT_TYPES))
        for dtype in INTEGER_TYPES:
            with self.subTest(dtype=dtype.__name__):
                name = f"built_{dtype.__name__}"
                limit = min(TOKENS, np.iinfo(dtype).max + 1)
                documents = documents_below(limit, [5, 2, 17, 40])
                documents.append([0, limit - 1])
                build_with_megatron(self.folder / name, [[tokens] for tokens in documents], dtype)
                run_file = self.run_file(name)
                report = json.loads(run_reprise("check", run_file, "--json"))["data"][0]
                self.assertEqual(report["samples"], len(documents))
                self.assertEqual(report["largest_id"], limit - 1)
                self.assertEqual(report["targets"], sum(len(tokens) - 1 for tokens in documents))
                run_reprise("collect", run_file)
                self.assertEqual(collected_documents(self.folder / f"{name}_store"),
                                 {d: (sample_hash(tokens), tokens[1:]) for d, tokens in enumerate(documents)})

    def test_a_document_of_several_sequences_is_one_sample(self) -> None:
        documents = [[[1, 2, 3], [4], [5, 6]], [[7, 8]], [[9], [10, 11, 12]]]
        build_with_megatron(self.folder / "sequences", documents, np.int32)
        run_reprise("collect", self.run_file("sequences"))
        joined = [[token for sequence in sequences for token in sequence] for sequences in documents]
        self.assertEqual(collected_documents(self.folder / "sequences_store"),
                         {d: (sample_hash(tokens), tokens[1:]) for d, tokens in enumerate(joined)})

    def test_a_blend_of_two_files_of_megatron_keeps_them_apart(self) -> None:
        first, second = documents_below(TOKENS, [6, 9, 4]), documents_below(TOKENS, [3, 8], seed=2)
        build_with_megatron(self.folder / "first", [[tokens] for tokens in first], np.uint16)
        build_with_megatron(self.folder / "second", [[tokens] for tokens in second], np.int64)
        run_file = self.run_file("first")
        blend = f"data.train={self.folder / 'first'},{self.folder / 'second'}"
        run_reprise("collect", run_file, blend)
        expected = {d: (sample_hash(tokens), tokens[1:]) for d, tokens in enumerate(first)}
        expected |= {(1 << 48) + d: (sample_hash(tokens), tokens[1:]) for d, tokens in enumerate(second)}
        self.assertEqual(collected_documents(self.folder / "first_store"), expected)
        run_reprise("train", run_file, blend, "data.weights=1,3", "train.steps=2", "train.global_batch=4")

    def test_floating_types_are_refused_by_name(self) -> None:
        for dtype in FLOAT_TYPES:
            name = f"built_{dtype.__name__}"
            build_with_megatron(self.folder / name, [[[1, 2, 3]]], dtype)
            said = run_reprise("check", self.run_file(name), fails=True)
            self.assertIn(dtype.__name__, said)
            self.assertIn(f"{name}.idx", said)


if __name__ == "__main__":
    unittest.main()
