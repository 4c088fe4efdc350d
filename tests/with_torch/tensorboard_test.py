"""The event files of `python -m reprise tensorboard`, read by TensorBoard's own reader, checksums and all."""

import json
import sys
import tempfile
import unittest
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from support import make_run  # noqa: E402

from reprise.tensorboard import export  # noqa: E402


class TensorBoardTest(unittest.TestCase):
    def test_the_numbers_come_back(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            run = make_run(Path(name) / "run", normalization="tile", optimizer="moclip", steps=200)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            end = (run / "metrics.jsonl").stat().st_mtime
            board = EventAccumulator(str(export(run, Path(name) / "board").parent), size_guidance={"scalars": 0})
            board.Reload()
            steps = [line for line in lines if "lr" in line]
            for key in ("loss", "lr", "grad_norm", "step_ms", "memory_bytes", "angle_max"):
                scalars = board.Scalars(f"train/{key}")
                self.assertEqual([s.step for s in scalars], [line["step"] for line in steps])
                for scalar, line in zip(scalars, steps):
                    self.assertAlmostEqual(scalar.value, line[key], delta=1e-6 * abs(line[key]))
            times = [s.wall_time for s in board.Scalars("train/loss")]
            self.assertAlmostEqual(times[-1], end, places=3)
            self.assertAlmostEqual(times[-1] - times[-2], steps[-1]["step_ms"] / 1e3, places=3)
            self.assertEqual([(s.step, s.value) for s in board.Scalars("eval/general/loss")], [(0, 2.0)])
            self.assertEqual(len(board.Scalars("train/angle_quantiles/2")), 200)


if __name__ == "__main__":
    unittest.main()
