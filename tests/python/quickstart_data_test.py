import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "configs" / "quickstart"))

import make_data  # noqa: E402
import nl2sql  # noqa: E402


class QuickstartDataTest(unittest.TestCase):
    def test_questions_are_the_same_on_every_machine_and_distinct(self) -> None:
        pairs = nl2sql.make_pairs(nl2sql.TELECOM, 300, 1)
        self.assertEqual(pairs, nl2sql.make_pairs(nl2sql.TELECOM, 300, 1))
        self.assertEqual(pairs, nl2sql.make_pairs(nl2sql.TELECOM, 400, 1)[:300])
        self.assertEqual(len({p["prompt"] for p in pairs}), 300)

    def test_uses_of_the_domain_never_share_a_question(self) -> None:
        parts = make_data.domain_pairs()
        prompts = [p["prompt"] for part in parts.values() for p in part]
        self.assertEqual(len(prompts), len(set(prompts)))
        self.assertEqual(len(parts["test"]), 400)

    def test_every_reference_runs_and_equals_itself(self) -> None:
        for schema in (nl2sql.TELECOM, *nl2sql.OTHER_SCHEMAS):
            database = nl2sql.build_database(schema)
            for pair in nl2sql.make_pairs(schema, 200, 3):
                self.assertTrue(nl2sql.same_result(database, pair["completion"], pair["completion"]), pair)

    def test_wrong_answers_are_wrong(self) -> None:
        database = nl2sql.build_database(nl2sql.TELECOM)
        reference = "SELECT name FROM cells ORDER BY users DESC, id LIMIT 3;"
        for answer in ("", "SELECT", "DROP TABLE cells;", "SELECT name FROM cells ORDER BY users ASC, id LIMIT 3;",
                       "SELECT name FROM cells, alarms, handovers, cells AS b, alarms AS c;"):
            self.assertFalse(nl2sql.same_result(database, answer, reference), answer)
        self.assertTrue(nl2sql.same_result(database, "SELECT COUNT(id) FROM cells", "SELECT COUNT(*) FROM cells;"))

    def test_every_sql_line_has_one_end(self) -> None:
        for pair in nl2sql.make_pairs(nl2sql.TELECOM, 200, 5):
            self.assertTrue(pair["prompt"].startswith("-- telecom: ") and pair["prompt"].endswith("\n"))
            self.assertTrue(pair["completion"].endswith(";"))


if __name__ == "__main__":
    unittest.main()
