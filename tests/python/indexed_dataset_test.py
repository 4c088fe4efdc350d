import tempfile
import unittest
from pathlib import Path

import numpy as np

from reprise.indexed_dataset import IndexedDatasetWriter, read_documents, read_weights, write_indexed_dataset


class IndexedDatasetTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.prefix = Path(self._folder.name) / "data" / "codes"

    def tearDown(self) -> None:
        self._folder.cleanup()

    def files(self) -> list[str]:
        return sorted(f.name for f in self.prefix.parent.iterdir())

    def test_arrays_come_back(self) -> None:
        rng = np.random.default_rng(1)
        for vocab_size, kind in ((1027, np.uint16), (70000, np.int32)):
            documents = [rng.integers(0, vocab_size, n) for n in (5, 1, 0, 7)]
            self.assertEqual(write_indexed_dataset(self.prefix, documents, vocab_size), 4)
            self.assertEqual(self.files(), ["codes.bin", "codes.idx"])
            back = read_documents(self.prefix)
            for (tokens, mask), document in zip(back, documents, strict=True):
                self.assertEqual(tokens.dtype, kind)
                self.assertEqual(tokens.tolist(), document.tolist())
                self.assertEqual(mask.tolist(), [0, *[1] * (len(document) - 1)][: len(document)])

    def test_masks_and_weights_may_begin_late(self) -> None:
        with IndexedDatasetWriter(self.prefix, 10) as writer:
            writer.add([1, 2, 3])
            writer.add([])
            writer.add([4, 5], mask=[1, 0])
            writer.add([6, 7], weight=[0.5, 2])
            writer.add([8, 9], weight=3)
            writer.add([1])
        self.assertEqual(self.files(), ["codes.bin", "codes.idx", "codes.mask.bin", "codes.weight.bin"])
        self.assertEqual([m.tolist() for _, m in read_documents(self.prefix)], [[0, 1, 1], [], [1, 0], [0, 1], [0, 1], [0]])
        self.assertEqual([w.tolist() for w in read_weights(self.prefix)], [[1, 1, 1], [], [1, 1], [0.5, 2], [3, 3], [1]])
        write_indexed_dataset(self.prefix, [[1, 2]], 10)
        self.assertEqual(self.files(), ["codes.bin", "codes.idx"], "what the new data has not is gone")
        write_indexed_dataset(self.prefix, [[1, 2], [3, 4]], 10, masks=[[0, 1], [0, 0]], weights=[1.0, 2.0])
        self.assertEqual(read_weights(self.prefix)[1].tolist(), [2, 2])

    def test_what_does_not_fit_is_refused_and_nothing_is_left(self) -> None:
        write_indexed_dataset(self.prefix, [[1, 2]], 10)
        before = (self.files(), self.prefix.with_suffix(".bin").read_bytes())
        for document, mask, weight, part in (([10], None, None, r"in \[0, 10\)"), ([-1], None, None, r"in \[0, 10\)"),
                                             ([0.5], None, None, "integers"), ([[1, 2]], None, None, "flatten"),
                                             ([1, 2], [1], None, "mask"), ([1, 2], [1, 2], None, "mask"),
                                             ([1, 2], None, [1, -1], "weights"), ([1, 2], None, float("nan"), "weights")):
            with self.assertRaisesRegex(ValueError, f"document 1.*{part}"):
                write_indexed_dataset(self.prefix, [[1], document], 10, masks=None if mask is None else [None, mask],
                                      weights=None if weight is None else [None, weight])
            self.assertEqual((self.files(), self.prefix.with_suffix(".bin").read_bytes()), before)
        with self.assertRaisesRegex(ValueError, "vocab_size"):
            IndexedDatasetWriter(self.prefix, 0)


if __name__ == "__main__":
    unittest.main()
