"""python -m reprise report: run folders to one self-contained HTML page.

Shows per run what it learned, what it forgot and what it cost: the table, curves, |S_t| histogram and the angles of
gradient and momentum. No script, no network: the page can be copied anywhere. `results.json` in a run folder adds
{"execution_accuracy": {"correct", "total"}, "general_loss": {"before", "after"}, "relative_l2"}; a --study file adds what
was done around the runs (learning rates tried, a run that was killed and resumed).
"""

from __future__ import annotations

import argparse
import html
import json
from pathlib import Path

from . import plots
from .runs import SPIKE_WINDOW, Run, Store, wilson_interval

STYLE = """
:root { color-scheme: light; --ink: #1b1f23; --soft: #57606a; --line: #d5dae0; --tint: #f3f6f9; --accent: #0b5a8a; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background: #fff; }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); font-size: .9rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; padding: 0; list-style: none; }
.facts li { background: var(--tint); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .8rem; min-width: 9rem; flex: 1; }
.facts b { display: block; font-size: 1.25rem; } .facts span { color: var(--soft); font-size: .82rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--tint); font-weight: 600; vertical-align: bottom; } thead th span { display: block; font-weight: 400; color: var(--soft); }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--tint); z-index: 1; }
td.best { font-weight: 700; } td.best::after { content: " \\2605"; font-size: .7em; vertical-align: .3em; } td:not(.best)::after { content: ""; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1.1rem; margin-top: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; } figure svg { display: block; height: auto; }
figcaption { font-size: .86rem; padding: .1rem .3rem .3rem; } figcaption b { display: block; }
code { background: var(--tint); padding: .05rem .3rem; border-radius: 4px; font-size: .9em; overflow-wrap: anywhere; }
.ok { border-left: 5px solid #1a7f37; } .bad { border-left: 5px solid #b42318; } .note { background: var(--tint); padding: .6rem .9rem; border-radius: 0 8px 8px 0; }
@media (max-width: 520px) { h1 { font-size: 1.35rem; } main { padding: 1rem .7rem 3rem; } .facts li { min-width: 44%; } }
@media print { .scroll { overflow: visible; } figure, tr { break-inside: avoid; } }
"""


class Column:
    """One column of the table: heading, unit, value of a run (None = not measured), its text, and which end is best."""

    def __init__(self, heading: str, unit: str, value, text, best=None):
        self.heading, self.unit, self.value, self.text, self.best = heading, unit, value, text, best


def _accuracy(run: Run) -> float | None:
    accuracy = run.results.get("execution_accuracy")
    return accuracy["correct"] / accuracy["total"] if accuracy else None


def _accuracy_text(run: Run, value: float) -> str:
    accuracy = run.results["execution_accuracy"]
    low, high = wilson_interval(accuracy["correct"], accuracy["total"])
    return f"{100 * value:.1f} % <span class=soft>[{100 * low:.0f}, {100 * high:.0f}]</span>"


def _general(run: Run, key: str) -> float | None:
    general = run.results.get("general_loss")
    return general[key] if general else None


def _rise(run: Run) -> float | None:
    general = run.results.get("general_loss")
    return general["after"] - general["before"] if general else None


def _plain(form: str, factor: float = 1.0):
    return lambda _, value: form.format(factor * value)


def _store_bytes(store: Store | None):
    return lambda run: None if store is None or run.normalization == "full" else store.bytes_per_token


def _quality_columns() -> list[Column]:
    return [
        Column("execution accuracy", "[95 % interval]", _accuracy, _accuracy_text, max),
        Column("general loss before", "nats/token", lambda r: _general(r, "before"), _plain("{:.3f}")),
        Column("after", "nats/token", lambda r: _general(r, "after"), _plain("{:.3f}")),
        Column("rise", "forgetting", _rise, _plain("{:+.3f}"), min),
        Column("distance to base", "relative L2", lambda r: r.results.get("relative_l2"), _plain("{:.2f} %", 100), min),
        Column("out-of-set mass", "last probe", lambda r: r.last_of("out_of_set_mass"), _plain("{:.4f}")),
    ]


def _cost_columns(store: Store | None) -> list[Column]:
    return [
        Column("loss variance", "around its trend", lambda r: r.loss_stability()[0], _plain("{:.1e}")),
        Column("spikes", "steps", lambda r: r.loss_stability()[1], _plain("{:.0f}")),
        Column("angle", "mean, °", lambda r: r.mean_of("angle_mean"), _plain("{:.0f}")),
        Column("clipped", "of groups", lambda r: r.mean_of("clipped_share"), _plain("{:.0f} %", 100)),
        Column("head", "ms/step", lambda r: r.median_of("head_ms"), _plain("{:.1f}"), min),
        Column("step", "ms", lambda r: r.median_of("step_ms"), _plain("{:.0f}"), min),
        Column("memory", "MiB/rank", lambda r: r.last_of("memory_bytes"), _plain("{:.0f}", 1 / 2**20)),
        Column("store", "bytes/token", _store_bytes(store), _plain("{:.0f}")),
    ]


def _table(runs: list[Run], columns: list[Column]) -> str:
    columns = [c for c in columns if any(c.value(r) is not None for r in runs)]
    if not columns:
        return ""
    values = {id(c): [c.value(r) for r in runs] for c in columns}
    head = "".join(f"<th scope=col>{c.heading}<span>{c.unit}</span></th>" for c in columns)
    rows = []
    for i, run in enumerate(runs):
        cells = []
        for c in columns:
            value, column = values[id(c)][i], [v for v in values[id(c)] if v is not None]
            best = value is not None and c.best is not None and len(set(column)) > 1 and value == c.best(column)
            cells.append(f"<td{' class=best' if best else ''}>{'–' if value is None else c.text(run, value)}</td>")
        rows.append(f"<tr><th scope=row>{html.escape(run.label)}</th>{''.join(cells)}</tr>")
    return (f"<div class=scroll><table><thead><tr><th scope=col>run</th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>")


def _figure(svg: str, title: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption><b>{title}</b>{caption}</figcaption></figure>"


def figures(runs: list[Run], store: Store | None, study: dict) -> str:
    parts = []
    judged = [r for r in runs if "execution_accuracy" in r.results and "general_loss" in r.results]
    if judged:
        parts.append(_figure(plots.accuracy_against_forgetting(judged, study.get("base", {}).get("execution_accuracy")),
                             "Learned against forgotten", "Up and to the left is better. Hollow: AdamW, filled: MoClip; "
                             "bars: 95 % intervals."))
    parts.append(_figure(plots.loss_curves(runs), "Training loss", "Running mean. Losses over different candidate sets are not "
                         "comparable: a smaller set is an easier choice."))
    if any(r.series("out_of_set_mass")[0] for r in runs):
        parts.append(_figure(plots.out_of_set_mass(runs), "What the restricted loss does not see",
                             "Probability that the full softmax gives to ids outside the candidates."))
    if store is not None:
        parts.append(_figure(plots.set_sizes(store), "Size of the recorded sets |S<sub>t</sub>|",
                             "How many ids cover the wanted mass under the base model."))
    if any(r.series("angle_quantiles")[0] for r in runs):
        parts.append(_figure(plots.angles([r for r in runs if r.optimizer == "moclip"]), "Angle of gradient and momentum",
                             "Median over the groups and the band from 5 % to 95 %, before the cap."))
    if any(r.median_of("step_ms") for r in runs):
        parts.append(_figure(plots.step_times(runs), "Where a step's time goes", "Medians over all steps."))
    return f"<div class=figures>{''.join(parts)}</div>"


def store_facts(store: Store) -> str:
    s, provenance = store.statistics, store.manifest["provenance"]
    sizes = s["set_size"]
    half, seen, middle = sum(sizes) / 2, 0, 0
    for middle, count in enumerate(sizes):
        seen += count
        if seen >= half:
            break
    share = store.bytes_per_token / (2 * store.vocab_size)
    facts = [(f"{s['tokens']:,}", "positions recorded"), (f"{middle}", "ids in the median set"),
             (f"{100 * s['mass'] / max(1, s['tokens']):.1f} %", "mass covered, mean"),
             (f"{100 * s['gold_outside'] / max(1, s['tokens']):.2f} %", "gold outside before forcing"),
             (f"{store.bytes_per_token:.0f} B", f"per token: {100 * share:.2f} % of full bf16 logits (V = {store.vocab_size:,})")]
    items = "".join(f"<li><b>{value}</b><span>{what}</span></li>" for value, what in facts)
    return (f"<h2>The replay store</h2><p>Top-K sets that cover {100 * float(provenance['tau']):g} % of the base model's "
            f"probability, at most {provenance['k_max']} ids, the next token always in.</p><ul class=facts>{items}</ul>")


def study_sections(study: dict) -> str:
    parts = []
    resume = study.get("resume")
    if resume:
        text = ("The killed and resumed run ended with the same bits" if resume["identical"]
                else "The killed and resumed run differs from the uninterrupted one")
        parts.append(f"<h2>Killed and resumed</h2><p class='note {'ok' if resume['identical'] else 'bad'}'><b>{text}.</b> "
                     f"{html.escape(resume['text'])}</p>")
    rates = study.get("learning_rates")
    if rates:
        names = {"accuracy": "execution accuracy", "rise": "rise of general loss", "optimizer": "optimizer", "lr": "lr",
                 "loss": "domain loss"}
        keys = [k for k in ("optimizer", "lr", "accuracy", "loss", "rise") if k in rates["rows"][0]]
        form = {"accuracy": "{:.1f} %", "rise": "{:+.3f}", "loss": "{:.4f}", "lr": "{:g}", "optimizer": "{}"}
        rows = "".join(f"<tr>{''.join(('<th scope=row>' if k == 'optimizer' else '<td' + (' class=best' if row.get('chosen') and k == 'lr' else '') + '>') + form[k].format(row[k]) for k in keys)}</tr>"
                       for row in rates["rows"])
        parts.append(f"<h2>Learning rates</h2><p>{html.escape(rates['text'])}</p><div class=scroll><table><thead><tr>"
                     f"{''.join(f'<th scope=col>{names[k]}</th>' for k in keys)}</tr></thead><tbody>{rows}</tbody></table></div>")
    return "".join(parts)


def page(runs: list[Run], store: Store | None, study: dict, title: str) -> str:
    facts = "".join(f"<li><b>{html.escape(str(value))}</b><span>{html.escape(what)}</span></li>"
                    for value, what in study.get("facts", []))
    settings = html.escape(", ".join(f"{k} {v}" for k, v in study.get("machine", {}).items()))
    return (f"<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>"
            f"<p>{html.escape(study.get('summary', ''))}</p>"
            + (f"<ul class=facts>{facts}</ul>" if facts else "")
            + "<h2>Learned and forgotten</h2>" + _table(runs, _quality_columns())
            + "<h2>Behaviour and cost</h2>" + _table(runs, _cost_columns(store))
            + f"<p class=soft>&#9733; best of the column. Spikes: steps whose loss lies more than three standard deviations above the mean "
              f"of the {SPIKE_WINDOW} before; variance: around that mean. – : not measured or not applicable.</p>"
            + figures(runs, store, study)
            + (store_facts(store) if store is not None else "")
            + study_sections(study)
            + (f"<h2>Machine</h2><p class=soft>{settings}</p>" if settings else "")
            + "</main></body></html>\n")


def report(folders: list[Path], out: Path, *, store: Path | None = None, study: Path | None = None,
           title: str = "reprise: post-training report") -> None:
    """Writes the page; raises ValueError for folders that are not what they should be."""
    runs = [Run.read(folder) for folder in folders]
    if store is None:
        named = {r.config["replay"]["store"] for r in runs if r.normalization != "full"}
        found = [Path(name) for name in sorted(named) if (Path(name) / "manifest.json").is_file()]
        store = found[0] if len(found) == 1 else None
    text = page(runs, Store.read(store) if store else None, json.loads(study.read_text()) if study else {}, title)
    part = out.with_name(out.name + ".part")
    part.write_text(text)
    part.replace(out)


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("report", help="run folders to one HTML page", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that `reprise train` wrote")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="replay store (default: the one the runs name)")
    parser.add_argument("--study", type=Path, metavar="FILE", help="JSON with what was done around the runs")
    parser.add_argument("--title", default="reprise: post-training report")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .errors import DataError

    try:
        report(options.runs, options.out, store=options.store, study=options.study, title=options.title)
    except (ValueError, KeyError) as error:
        raise DataError(str(error)) from None
    print(f"{options.out}: {len(options.runs)} runs")
    return 0
