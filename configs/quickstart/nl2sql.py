"""Questions over small relational schemas and the SQL that answers them, made by a grammar.

A schema is a list of tables with typed columns and the words people use for them; the same templates make questions for
every schema. The telecom schema is the quickstart's domain; the others teach the base model what questions and SQL look
like without showing it the domain. Everything is decided by the seed, so any machine makes the same data.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    name: str
    words: tuple[str, ...]  # how a question names it
    values: tuple[str, ...] = ()  # text column: its values
    low: int = 0  # number column: range
    high: int = 0

    @property
    def is_text(self) -> bool:
        return bool(self.values)


@dataclass(frozen=True)
class Table:
    name: str
    singular: str
    plural: tuple[str, ...]
    columns: tuple[Column, ...]  # the first is the identifying text column
    parent: str = ""  # table that `<parent>_id` refers to


@dataclass(frozen=True)
class Schema:
    name: str
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        return next(t for t in self.tables if t.name == name)


def _names(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i:02d}" for i in range(1, count + 1))


TELECOM = Schema(
    "telecom",
    (
        Table(
            "cells",
            "cell",
            ("cells", "radio cells"),
            (
                Column("name", ("name",), _names("C", 24)),
                Column("band", ("band", "frequency band"), ("n1", "n28", "n41", "n77", "n78", "n258")),
                Column("vendor", ("vendor", "supplier"), ("Aria", "Borealis", "Corvid", "Delta")),
                Column("region", ("region", "area"), ("north", "south", "east", "west", "centre")),
                Column("power_dbm", ("transmit power", "power"), low=20, high=49),
                Column("prb_load", ("PRB load", "load"), low=1, high=99),
                Column("users", ("connected users", "users"), low=0, high=400),
                Column("tilt_deg", ("antenna tilt", "tilt"), low=0, high=12),
            ),
        ),
        Table(
            "alarms",
            "alarm",
            ("alarms", "faults"),
            (
                Column("code", ("code",), _names("A", 16)),
                Column("severity", ("severity",), ("critical", "major", "minor", "warning")),
                Column("cause", ("cause", "probable cause"), ("link", "power", "clock", "vswr", "sync", "fan")),
                Column("state", ("state",), ("open", "cleared", "acknowledged")),
                Column("duration_min", ("duration", "duration in minutes"), low=1, high=600),
                Column("repeat_count", ("repeat count", "number of repeats"), low=0, high=40),
            ),
            parent="cells",
        ),
        Table(
            "handovers",
            "handover",
            ("handovers", "handover records"),
            (
                Column("kind", ("kind", "type"), ("intra", "inter", "x2", "xn", "n2")),
                Column("result", ("result", "outcome"), ("success", "too_late", "too_early", "wrong_cell")),
                Column("rsrp_dbm", ("RSRP",), low=60, high=130),
                Column("delay_ms", ("interruption time", "delay"), low=5, high=300),
            ),
            parent="cells",
        ),
    ),
)

OTHER_SCHEMAS = (
    Schema(
        "library",
        (
            Table("books", "book", ("books", "volumes"), (
                Column("title", ("title",), _names("B", 24)),
                Column("genre", ("genre", "category"), ("novel", "poetry", "history", "science", "travel")),
                Column("language", ("language",), ("english", "french", "german", "spanish")),
                Column("pages", ("number of pages", "pages"), low=40, high=900),
                Column("year", ("year", "year of publication"), low=1900, high=2024),
                Column("copies", ("copies", "stock"), low=0, high=40),
            )),
            Table("loans", "loan", ("loans", "checkouts"), (
                Column("code", ("code",), _names("L", 16)),
                Column("status", ("status",), ("returned", "late", "lost", "active")),
                Column("branch", ("branch",), ("main", "harbour", "hill", "market")),
                Column("days", ("days", "length in days"), low=1, high=60),
                Column("fine_cents", ("fine",), low=0, high=900),
            ), parent="books"),
        ),
    ),
    Schema(
        "company",
        (
            Table("employees", "employee", ("employees", "staff members"), (
                Column("name", ("name",), _names("E", 24)),
                Column("team", ("team", "department"), ("sales", "design", "legal", "finance", "support")),
                Column("city", ("city",), ("paris", "oslo", "rome", "lima", "cairo")),
                Column("salary", ("salary", "pay"), low=20, high=180),
                Column("age", ("age",), low=18, high=67),
                Column("level", ("level", "grade"), low=1, high=9),
            )),
            Table("projects", "project", ("projects",), (
                Column("code", ("code",), _names("P", 16)),
                Column("phase", ("phase", "stage"), ("plan", "build", "test", "done")),
                Column("client", ("client", "customer"), ("acme", "globex", "initech", "umbra")),
                Column("budget", ("budget",), low=5, high=500),
                Column("risk", ("risk score", "risk"), low=0, high=10),
            ), parent="employees"),
        ),
    ),
    Schema(
        "airport",
        (
            Table("flights", "flight", ("flights", "departures"), (
                Column("number", ("number",), _names("F", 24)),
                Column("airline", ("airline", "carrier"), ("skyline", "nordair", "sunjet", "altus")),
                Column("gate", ("gate",), ("g1", "g2", "g3", "g4", "g5")),
                Column("delay_min", ("delay", "delay in minutes"), low=0, high=240),
                Column("seats", ("seats", "capacity"), low=40, high=400),
                Column("distance_km", ("distance",), low=100, high=9000),
            )),
            Table("bags", "bag", ("bags", "pieces of luggage"), (
                Column("tag", ("tag",), _names("T", 16)),
                Column("kind", ("kind", "type"), ("cabin", "hold", "sports", "pet")),
                Column("state", ("state",), ("loaded", "missing", "claimed")),
                Column("weight_kg", ("weight",), low=1, high=40),
                Column("fee", ("fee",), low=0, high=90),
            ), parent="flights"),
        ),
    ),
    Schema(
        "shop",
        (
            Table("products", "product", ("products", "items"), (
                Column("name", ("name",), _names("K", 24)),
                Column("brand", ("brand", "maker"), ("zen", "pixo", "luma", "orbit")),
                Column("colour", ("colour",), ("red", "blue", "green", "black", "white")),
                Column("price", ("price",), low=1, high=999),
                Column("stock", ("stock", "units in stock"), low=0, high=300),
                Column("rating", ("rating",), low=1, high=10),
            )),
            Table("orders", "order", ("orders", "purchases"), (
                Column("code", ("code",), _names("O", 16)),
                Column("channel", ("channel",), ("web", "store", "phone", "partner")),
                Column("status", ("status",), ("paid", "open", "refunded", "sent")),
                Column("quantity", ("quantity",), low=1, high=20),
                Column("discount", ("discount",), low=0, high=50),
            ), parent="products"),
        ),
    ),
    Schema(
        "school",
        (
            Table("students", "student", ("students", "pupils"), (
                Column("name", ("name",), _names("S", 24)),
                Column("house", ("house",), ("oak", "elm", "ash", "birch")),
                Column("club", ("club",), ("chess", "drama", "music", "rowing", "maths")),
                Column("score", ("score", "test score"), low=0, high=100),
                Column("absences", ("absences", "days absent"), low=0, high=60),
                Column("height_cm", ("height",), low=120, high=200),
            )),
            Table("lessons", "lesson", ("lessons", "classes"), (
                Column("code", ("code",), _names("N", 16)),
                Column("subject", ("subject",), ("latin", "physics", "art", "biology")),
                Column("room", ("room",), ("r1", "r2", "r3", "lab", "gym")),
                Column("minutes", ("minutes", "length"), low=20, high=120),
                Column("places", ("places",), low=5, high=40),
            ), parent="students"),
        ),
    ),
)


def build_database(schema: Schema, seed: int = 7, rows: int = 120) -> sqlite3.Connection:
    """An in-memory database whose contents depend on (schema, seed) alone; an answer can read it but not change it."""
    rng = random.Random(f"{schema.name}/{seed}")
    connection = sqlite3.connect(":memory:")
    for table in schema.tables:
        columns = ["id INTEGER PRIMARY KEY"]
        if table.parent:
            columns.append(f"{table.parent}_id INTEGER")
        columns += [f"{c.name} {'TEXT' if c.is_text else 'INTEGER'}" for c in table.columns]
        connection.execute(f"CREATE TABLE {table.name} ({', '.join(columns)})")
        for i in range(rows):
            row: list[object] = [i + 1]
            if table.parent:
                row.append(rng.randrange(rows) + 1)
            row += [rng.choice(c.values) if c.is_text else rng.randint(c.low, c.high) for c in table.columns]
            connection.execute(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(row))})", row)
    connection.commit()
    connection.execute("PRAGMA query_only = ON")
    return connection


def _literal(column: Column, value: object) -> str:
    return f"'{value}'" if column.is_text else str(value)


class _Maker:
    def __init__(self, schema: Schema, rng: random.Random):
        self.schema, self.rng = schema, rng

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def number(self, table: Table) -> Column:
        return self.rng.choice([c for c in table.columns if not c.is_text])

    def text(self, table: Table) -> Column:
        return self.rng.choice([c for c in table.columns[1:] if c.is_text] or [table.columns[0]])

    def word(self, column: Column) -> str:
        return self.rng.choice(column.words)

    def plural(self, table: Table) -> str:
        return self.rng.choice(table.plural)

    def condition(self, table: Table, qualifier: str = "") -> tuple[str, str]:
        """(words, SQL) of one filter."""
        if self.rng.random() < 0.5:
            column = self.text(table)
            value = self.rng.choice(column.values)
            words = self.pick(f"with {self.word(column)} {value}", f"whose {self.word(column)} is {value}",
                              f"in the {value} {self.word(column)}" if self.rng.random() < 0.3
                              else f"where the {self.word(column)} equals {value}")
            if self.rng.random() < 0.15:
                words = f"whose {self.word(column)} is not {value}"
                return words, f"{qualifier}{column.name} <> {_literal(column, value)}"
            return words, f"{qualifier}{column.name} = {_literal(column, value)}"
        column = self.number(table)
        value = self.rng.randint(column.low, column.high)
        kind = self.rng.randrange(4)
        if kind == 0:
            words = self.pick(f"with {self.word(column)} above {value}",
                              f"whose {self.word(column)} is greater than {value}")
            return words, f"{qualifier}{column.name} > {value}"
        if kind == 1:
            words = self.pick(f"with {self.word(column)} below {value}",
                              f"whose {self.word(column)} is less than {value}")
            return words, f"{qualifier}{column.name} < {value}"
        if kind == 2:
            words = self.pick(f"with {self.word(column)} of at least {value}",
                              f"with a {self.word(column)} no lower than {value}")
            return words, f"{qualifier}{column.name} >= {value}"
        other = self.rng.randint(column.low, column.high)
        low, high = min(value, other), max(value, other)
        return f"with {self.word(column)} between {low} and {high}", f"{qualifier}{column.name} BETWEEN {low} AND {high}"

    def filters(self, table: Table, qualifier: str = "") -> tuple[str, str]:
        words, sql = self.condition(table, qualifier)
        if self.rng.random() < 0.35:
            more_words, more_sql = self.condition(table, qualifier)
            joint = self.pick("and", "or")
            return f"{words} {joint} {more_words}", f"{sql} {joint.upper()} {more_sql}"
        return words, sql

    def question(self) -> tuple[str, str]:
        table = self.rng.choice(self.schema.tables)
        kinds = [self.count, self.aggregate, self.listing, self.top, self.group, self.distinct]
        if table.parent:
            kinds += [self.join, self.join_count, self.join_count]
        return self.rng.choice(kinds)(table)

    def count(self, table: Table) -> tuple[str, str]:
        words, sql = self.filters(table)
        plural = self.plural(table)
        return (self.pick(f"How many {plural} are there {words}?", f"Count the {plural} {words}.",
                          f"What is the number of {plural} {words}?"),
                f"SELECT COUNT(*) FROM {table.name} WHERE {sql}")

    def aggregate(self, table: Table) -> tuple[str, str]:
        column = self.number(table)
        name, function = self.rng.choice([("average", "AVG"), ("mean", "AVG"), ("highest", "MAX"), ("maximum", "MAX"),
                                          ("lowest", "MIN"), ("minimum", "MIN"), ("total", "SUM")])
        words, sql = self.filters(table)
        plural = self.plural(table)
        return (self.pick(f"What is the {name} {self.word(column)} of {plural} {words}?",
                          f"Give the {name} {self.word(column)} over all {plural} {words}."),
                f"SELECT {function}({column.name}) FROM {table.name} WHERE {sql}")

    def listing(self, table: Table) -> tuple[str, str]:
        key = table.columns[0]
        words, sql = self.filters(table)
        plural = self.plural(table)
        return (self.pick(f"List the {self.word(key)} of {plural} {words}.",
                          f"Which {plural} are there {words}? Show the {self.word(key)}.",
                          f"Show the {self.word(key)} of every {table.singular} {words}."),
                f"SELECT {key.name} FROM {table.name} WHERE {sql}")

    def top(self, table: Table) -> tuple[str, str]:
        key, column, count = table.columns[0], self.number(table), self.rng.randint(1, 9)
        best = self.rng.random() < 0.5
        plural = self.plural(table)
        return (f"{self.pick('Show', 'Give', 'List')} the {self.word(key)} of the {count} {plural} with the "
                f"{'highest' if best else 'lowest'} {self.word(column)}.",
                f"SELECT {key.name} FROM {table.name} ORDER BY {column.name} {'DESC' if best else 'ASC'}, id LIMIT {count}")

    def group(self, table: Table) -> tuple[str, str]:
        by = self.text(table)
        plural = self.plural(table)
        if self.rng.random() < 0.5:
            return (self.pick(f"How many {plural} are there per {self.word(by)}?",
                              f"Count the {plural} for each {self.word(by)}."),
                    f"SELECT {by.name}, COUNT(*) FROM {table.name} GROUP BY {by.name}")
        column = self.number(table)
        name, function = self.rng.choice([("average", "AVG"), ("highest", "MAX"), ("lowest", "MIN"), ("total", "SUM")])
        if self.rng.random() < 0.4:
            words, sql = self.condition(table)
            return (f"For each {self.word(by)}, what is the {name} {self.word(column)} of {plural} {words}?",
                    f"SELECT {by.name}, {function}({column.name}) FROM {table.name} WHERE {sql} GROUP BY {by.name}")
        return (self.pick(f"What is the {name} {self.word(column)} of {plural} per {self.word(by)}?",
                          f"For each {self.word(by)}, give the {name} {self.word(column)} of its {plural}."),
                f"SELECT {by.name}, {function}({column.name}) FROM {table.name} GROUP BY {by.name}")

    def distinct(self, table: Table) -> tuple[str, str]:
        column = self.text(table)
        words, sql = self.condition(table)
        plural = self.plural(table)
        return (self.pick(f"Which different {self.word(column)} values do {plural} {words} have?",
                          f"List each {self.word(column)} that occurs among {plural} {words}."),
                f"SELECT DISTINCT {column.name} FROM {table.name} WHERE {sql}")

    def _on(self, table: Table, parent: Table) -> str:
        return f"JOIN {parent.name} ON {table.name}.{parent.name}_id = {parent.name}.id"

    def join(self, table: Table) -> tuple[str, str]:
        parent = self.schema.table(table.parent)
        words, sql = self.condition(table, f"{table.name}.")
        key = parent.columns[0]
        return (self.pick(f"Show the {self.word(key)} of {self.plural(parent)} that have {self.plural(table)} {words}.",
                          f"Which {self.plural(parent)} have {self.plural(table)} {words}? Give the {self.word(key)}."),
                f"SELECT DISTINCT {parent.name}.{key.name} FROM {table.name} {self._on(table, parent)} WHERE {sql}")

    def join_count(self, table: Table) -> tuple[str, str]:
        parent = self.schema.table(table.parent)
        words, sql = self.condition(parent, f"{parent.name}.")
        if self.rng.random() < 0.4:
            own_words, own_sql = self.condition(table, f"{table.name}.")
            return (f"How many {self.plural(table)} {own_words} belong to {self.plural(parent)} {words}?",
                    f"SELECT COUNT(*) FROM {table.name} {self._on(table, parent)} WHERE {own_sql} AND {sql}")
        return (self.pick(f"How many {self.plural(table)} belong to {self.plural(parent)} {words}?",
                          f"Count the {self.plural(table)} of {self.plural(parent)} {words}."),
                f"SELECT COUNT(*) FROM {table.name} {self._on(table, parent)} WHERE {sql}")


def make_pairs(schema: Schema, count: int, seed: int, exclude: set[str] = frozenset()) -> list[dict[str, str]]:
    """`count` distinct {"prompt", "completion"} pairs whose prompts are not in `exclude`."""
    maker = _Maker(schema, random.Random(f"{schema.name}/{seed}"))
    seen = set(exclude)
    pairs = []
    while len(pairs) < count:
        question, sql = maker.question()
        prompt = f"-- {schema.name}: {question}\n"
        if prompt not in seen:
            seen.add(prompt)
            pairs.append({"prompt": prompt, "completion": sql + ";"})
    return pairs


def same_result(connection: sqlite3.Connection, candidate: str, expected: str) -> bool:
    """Execution accuracy of one answer: equal result, as a list where the reference orders rows, else as a multiset."""
    expected_rows = connection.execute(expected).fetchall()
    steps = 0

    def stop_endless_query() -> int:
        nonlocal steps
        steps += 1
        return steps > 200

    connection.set_progress_handler(stop_endless_query, 10_000)
    try:
        rows = connection.execute(candidate).fetchmany(len(expected_rows) + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return False
    finally:
        connection.set_progress_handler(None, 0)
    if "ORDER BY" in expected:
        return rows == expected_rows
    return sorted(map(repr, rows)) == sorted(map(repr, expected_rows))
