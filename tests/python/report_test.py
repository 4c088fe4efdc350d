import contextlib
import io
import json
import re
import tempfile
import unittest
from pathlib import Path

import numpy as np
from support import make_run, make_store

from reprise.__main__ import main
from reprise.runs import Run, relative_distance, wilson_interval

RESULTS = {"execution_accuracy": {"correct": 380, "total": 400}, "general_loss": {"before": 2.0, "after": 2.25}, "relative_l2": 0.03}


def write_model(folder: Path, values: np.ndarray) -> Path:
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, values.nbytes]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + values.tobytes())
    return folder


class ReportTest(unittest.TestCase):
    def setUp(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)

    def tearDown(self) -> None:
        self._folder.cleanup()

    def test_the_page_holds_every_run_and_needs_nothing_else(self) -> None:
        store = make_store(self.folder / "store")
        runs = [make_run(self.folder / f"{head}-{name}", normalization=head, optimizer=name, results=RESULTS)
                for head in ("full", "token", "tile") for name in ("adamw", "moclip")]
        study = self.folder / "study.json"
        study.write_text(json.dumps({"resume": {"identical": False, "text": "killed <here>"},
                                     "learning_rates": {"text": "a grid", "rows": [{"optimizer": "adamw", "lr": 1e-3, "accuracy": 90.0,
                                                                                    "rise": 0.1, "chosen": True}]}}))
        out = self.folder / "report.html"
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["report", *map(str, runs), "--out", str(out), "--store", str(store), "--study", str(study)]), 0)
        page = out.read_text()
        for label in ("full · AdamW", "token · MoClip", "tile 8 · MoClip"):
            self.assertIn(label, page)
        self.assertIn("95.0 %", page)
        self.assertIn("+0.250", page)
        self.assertIn("killed &lt;here&gt;", page)
        self.assertIn("differs", page)
        self.assertEqual(page.count("<figure>"), 6)
        self.assertIsNone(re.search(r'(src|href)="(?!#)', page), "the page must be self-contained")
        self.assertNotIn("<script", page)

    def test_a_run_without_results_is_still_drawn(self) -> None:
        run = make_run(self.folder / "run", normalization="full", optimizer="adamw")
        out = self.folder / "report.html"
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["report", str(run), "--out", str(out)]), 0)
        self.assertIn("ms/step", out.read_text())

    def test_a_folder_that_is_no_run_is_named(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as complaint:
            self.assertEqual(main(["report", str(self.folder), "--out", str(self.folder / "x.html")]), 3)
        self.assertIn("not a run folder", complaint.getvalue())
        self.assertFalse((self.folder / "x.html").exists())

    def test_a_spike_is_found_where_it_is(self) -> None:
        calm = Run.read(make_run(self.folder / "calm", normalization="tile", optimizer="moclip"))
        spiky = Run.read(make_run(self.folder / "spiky", normalization="tile", optimizer="moclip", spike_at=30))
        self.assertEqual(calm.loss_stability()[1], 0)
        self.assertEqual(spiky.loss_stability()[1], 1)
        self.assertGreater(spiky.loss_stability()[0], calm.loss_stability()[0])

    def test_intervals(self) -> None:
        low, high = wilson_interval(380, 400)  # computed by hand from the formula
        self.assertAlmostEqual(low, 0.9241, places=3)
        self.assertAlmostEqual(high, 0.9673, places=3)
        self.assertEqual(wilson_interval(0, 10)[0], 0.0)
        self.assertEqual(wilson_interval(0, 0), (0.0, 1.0))

    def test_relative_distance(self) -> None:
        base = write_model(self.folder / "base", np.array([[3.0, 4.0]], np.float32))
        model = write_model(self.folder / "model", np.array([[3.0, 4.5]], np.float32))
        self.assertAlmostEqual(relative_distance(model, base), 0.1)


if __name__ == "__main__":
    unittest.main()
