import contextlib
import io
import struct
import tempfile
import unittest
from pathlib import Path

from support import make_run

from reprise.__main__ import main
from reprise.tensorboard import crc32c


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file, without a look at the checksums."""
    found = []
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


class TensorBoardTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def test_the_checksum_is_castagnolis(self) -> None:
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)  # the check value of the CRC catalogues
        self.assertEqual(crc32c(bytes(32)), 0x8A9136AA)  # RFC 3720, B.4

    def test_every_step_is_an_event_and_a_second_export_replaces_the_first(self) -> None:
        run = make_run(self.folder / "run", normalization="tile", optimizer="moclip", steps=300)
        for _ in range(2):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                self.assertEqual(main(["tensorboard", str(run), "--out", str(self.folder / "board")]), 0)
        self.assertIn("tensorboard --logdir", printed.getvalue())
        [file] = list((self.folder / "board" / "run").iterdir())
        found = records(file.read_bytes())
        self.assertEqual(len(found), 1 + 300 + 1)
        self.assertIn(b"brain.Event:2", found[0])
        self.assertEqual(found[-2][9:12], b"\x10\xac\x02")  # field 2, step 300 as a varint
        self.assertIn(b"train/loss", found[1])
        self.assertIn(b"eval/general/loss", found[-1])

    def test_folders_that_are_no_runs_are_named(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            self.assertEqual(main(["tensorboard", str(self.folder), "--out", str(self.folder / "b")]), 3)
        self.assertIn("not a run folder", complaint.getvalue())


if __name__ == "__main__":
    unittest.main()
