"""The report's figures as inline SVG: told apart by line style, marker and label as well as colour."""

from __future__ import annotations

import io
import re
from typing import Callable

from .runs import Run, Store, wilson_interval

# Okabe and Ito's palette: safe for the colour-blind, and of different lightness in print.
COLOURS = {"full": "#222222", "token": "#D55E00", "tile": "#0072B2"}
MARKERS = {"full": "s", "token": "^", "tile": "o"}
SIZE = (4.4, 3.1)


def _figure(draw: Callable, size: tuple[float, float] = SIZE) -> str:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
             "axes.grid": True, "grid.color": "#e3e3e3", "grid.linewidth": 0.6, "legend.frameon": False,
             "font.family": "sans-serif", "svg.hashsalt": "reprise", "axes.axisbelow": True}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=size)
        draw(axes)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    svg = buffer.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img" width="100%"', svg[svg.index("<svg"):], count=1)


def _is_global(run: Run) -> bool:
    return run.optimizer == "moclip" and run.config["optimizer"]["angle_scope"] == "global"


def _style(run: Run) -> dict:
    return {"color": COLOURS[run.normalization],
            "linestyle": (":" if _is_global(run) else "-") if run.optimizer == "moclip" else (0, (4, 2))}


def _smooth(values: list[float], window: int) -> list[float]:
    return [sum(values[max(0, i - window + 1): i + 1]) / (i - max(0, i - window + 1) + 1) for i in range(len(values))]


def loss_curves(runs: list[Run]) -> str:
    def draw(axes) -> None:
        for run in runs:
            steps, losses = run.series("loss")
            axes.plot(steps, _smooth(losses, max(1, len(losses) // 20)), label=run.label, linewidth=1.4, **_style(run))
        axes.set(xlabel="step", ylabel="training loss, nats per token", yscale="log")
        axes.legend(fontsize=7.5)

    return _figure(draw)


def accuracy_against_forgetting(runs: list[Run], base: dict | None = None) -> str:
    """Domain accuracy over the rise of the general loss; up and to the left is better."""

    def draw(axes) -> None:
        for run in runs:
            accuracy = run.results["execution_accuracy"]
            share = accuracy["correct"] / accuracy["total"]
            low, high = wilson_interval(accuracy["correct"], accuracy["total"])
            rise = run.results["general_loss"]["after"] - run.results["general_loss"]["before"]
            hollow = run.optimizer == "adamw"
            axes.errorbar(rise, 100 * share, yerr=[[100 * (share - low)], [100 * (high - share)]], capsize=2,
                          fmt="D" if _is_global(run) else MARKERS[run.normalization], color=COLOURS[run.normalization], markersize=7, linewidth=1,
                          markerfacecolor="white" if hollow else COLOURS[run.normalization], label=run.label)
        if base is not None:
            axes.axhline(100 * base["correct"] / base["total"], color="#888888", linewidth=1, linestyle=":")
            axes.annotate("base model", (axes.get_xlim()[1], 100 * base["correct"] / base["total"]), ha="right",
                          va="bottom", fontsize=7.5, color="#555555")
        axes.set(xlabel="rise of the general loss, nats per token", ylabel="execution accuracy, %")
        axes.legend(fontsize=7, loc="best")

    return _figure(draw)


def out_of_set_mass(runs: list[Run]) -> str:
    def draw(axes) -> None:
        for run in runs:
            steps, mass = run.series("out_of_set_mass")
            if steps:
                axes.plot(steps, mass, label=run.label, marker=MARKERS[run.normalization], markersize=3.5, linewidth=1.2,
                          **_style(run))
        axes.set(xlabel="step", ylabel="probability outside the candidates", ylim=(0, None))
        axes.legend(fontsize=7.5)

    return _figure(draw)


def set_sizes(store: Store) -> str:
    sizes = store.statistics["set_size"]

    def draw(axes) -> None:
        last = max((n for n, count in enumerate(sizes) if count), default=1)
        width = max(1, -(-(last + 1) // 40))
        bins = [sum(sizes[b: b + width]) for b in range(0, last + 1, width)]
        total = sum(bins) or 1
        axes.bar([width * i + width / 2 for i in range(len(bins))], [100 * b / total for b in bins], width=width,
                 color="#0072B2", edgecolor="white", linewidth=0.4)
        axes.set(xlabel="ids in a set", ylabel="% of positions (log)", yscale="log")

    return _figure(draw)


def angles(runs: list[Run]) -> str:
    """Median over the groups and the band from the 5 % to the 95 % quantile, by step."""

    def draw(axes) -> None:
        for run in runs:
            steps, quantiles = run.series("angle_quantiles")
            if not steps:
                continue
            axes.plot(steps, [q[2] for q in quantiles], label=run.label, linewidth=1.3, **_style(run))
            axes.fill_between(steps, [q[0] for q in quantiles], [q[4] for q in quantiles], alpha=0.12, linewidth=0,
                              color=COLOURS[run.normalization])
        caps = {r.config["optimizer"]["max_angle"] for r in runs if r.optimizer == "moclip"}
        for cap in caps - {180.0}:
            axes.axhline(cap, color="#888888", linewidth=1, linestyle=":")
            axes.annotate(f"cap {cap:g}°", (0, cap), fontsize=7.5, va="bottom", color="#555555")
        axes.set(xlabel="step", ylabel="angle of gradient and momentum, °", ylim=(0, 180), yticks=range(0, 181, 30))
        axes.legend(fontsize=7.5, loc="lower right")

    return _figure(draw)


def step_times(runs: list[Run]) -> str:
    def draw(axes) -> None:
        labels = [r.label for r in runs]
        heads = [r.median_of("head_ms") or 0.0 for r in runs]
        rest = [max(0.0, (r.median_of("step_ms") or 0.0) - h) for r, h in zip(runs, heads)]
        rows = range(len(runs))
        axes.barh(rows, heads, color="#0072B2", label="loss head")
        axes.barh(rows, rest, left=heads, color="#c9d6df", hatch="///", edgecolor="white", label="rest of the step")
        axes.set_yticks(list(rows), labels, fontsize=7.5)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="ms per step, median")
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.4, -0.18), ncol=2)

    return _figure(draw)
