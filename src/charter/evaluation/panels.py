"""Panels of the page: small plots as SVG, and the sections that are made of them."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from charter.evaluation.words import (
    Report,
    better_of,
    interval_of,
    is_share,
    lower_first,
    mappings_in,
    metric_cell,
    number_of,
    number_text,
    range_text,
    sampling_words,
    title_of,
)
from charter.metrics import HEADLINE, METRICS, SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARM_COLOURS = {"base": 0, "policy": 1, "sft": 2}  # these arms look the same in every report, others take what is left
N_COLOURS = 8
CURVE_SHARES = {"accuracy", "clip_fraction", "harmful"}  # columns of training logs that are shares

# Every plot is one small panel of the same size, so that a page can set them side by side or below each other. Matplotlib draws
# with colours that stand for CSS variables and become them in the SVG: the page decides how they look, light or dark.

INK, FAINT, PANEL = "#010203", "#040506", "#070809"
MARKERS = "osD^vPX*"


def stands_for(index: int) -> str:
    return f"#0a0b{index % N_COLOURS:02x}"


CSS_COLOURS = {INK: "var(--ink)", FAINT: "var(--rule)", PANEL: "var(--paper)"}
CSS_COLOURS |= {stands_for(i): f"var(--arm-{i})" for i in range(N_COLOURS)}


class Panels:
    """Draws panels for one page; ids inside the SVGs are numbered so that no two share one."""

    def __init__(self) -> None:
        self.count = 0

    def draw(self, title: str, alt: str, paint: Callable[[Axes], None], height: float = 2.4) -> dict[str, Any]:
        """One panel as {"title", "svg"}; ``alt`` describes it to a reader who cannot see it."""
        from markupsafe import Markup, escape
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        style: Any = {
            "svg.fonttype": "none", "svg.hashsalt": "charter", "text.parse_math": False, "font.size": 9,
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.facecolor": "none",
            "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
            "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "xtick.major.size": 0,
            "ytick.major.size": 0, "axes.formatter.useoffset": False, "path.simplify_threshold": 1.0,
        }  # fmt: skip
        with rc_context(style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the fonts, not matplotlib
            figure = Figure(figsize=(3.9, height))
            paint(axes := figure.add_subplot())
            make_room(axes)
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
        for colour, variable in CSS_COLOURS.items():
            svg = svg.replace(colour, variable)
        self.count += 1
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>p{self.count}-", svg)
        size = re.search(r'viewBox="[^"]*"', svg)
        body = svg[svg.index(">", svg.index("<svg")) + 1 :]  # the root element is written anew: no fixed size, a label
        root = f'<svg role="img" aria-label="{escape(alt)}" {size[0] if size else ""}>'
        return {"title": title, "svg": Markup(root + body)}  # matplotlib's own markup; it escapes the labels in it


def make_room(axes: Axes) -> None:
    """Give the labels of a figure's only axes the room that they need. Matplotlib's layouts draw the whole figure to find it."""
    figure = axes.figure
    inner, outer = axes.bbox, axes.get_tightbbox()
    assert outer is not None  # visible axes have a box
    width, height = figure.bbox.size
    pad = 0.04 * figure.dpi  # inches
    left = min((inner.x0 - outer.x0 + pad) / width, 0.6)
    right = max(1 - (outer.x1 - inner.x1 + pad) / width, 0.7)
    bottom, top = (inner.y0 - outer.y0 + pad) / height, 1 - (outer.y1 - inner.y1 + pad) / height
    figure.subplots_adjust(left=left, right=right, bottom=min(bottom, 0.45), top=max(top, 0.55))


def axis_label(text: Any, length: int = 26) -> str:
    """Short enough for an axis, without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def dots_panel(
    panels: Panels,
    title: str,
    rows: Sequence[tuple[str, int, Mapping[str, Any]]],
    *,
    share: bool,
    limits: tuple[float, float] | None = None,
    line: float | None = None,
    line_name: str = "",
) -> dict[str, Any] | None:
    """Dot and whisker, one row (label, colour, result) below the other; None if no row has a value."""
    shown = [(label, colour, row) for label, colour, row in rows if number_of(row.get("value")) is not None]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        scale = 100 if share else 1
        for y, (_, colour, row) in enumerate(shown):
            ink = stands_for(colour)
            if (ci := interval_of(row)) is not None:
                axes.plot([ci[0] * scale, ci[1] * scale], [y, y], color=ink, linewidth=2, solid_capstyle="butt")
            axes.plot(row["value"] * scale, y, MARKERS[colour % len(MARKERS)], color=ink, markersize=6.5, clip_on=False)
        if line is not None:
            axes.axvline(line * scale, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(line * scale, -0.62, f" {line_name}", fontsize=8, va="center")
        axes.set_yticks(range(len(shown)), [axis_label(label) for label, _, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.8 if line is not None else -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        if limits is not None:
            axes.set_xlim(limits[0] * scale, limits[1] * scale)
        if share:
            axes.xaxis.set_major_formatter("{x:.0f}%")

    parts = []
    for label, _, row in shown:
        ci = interval_of(row)
        parts.append(f"{label} {number_text(row['value'], share)}" + (f" ({range_text(ci, share)})" if ci else ""))
    return panels.draw(title, f"{title}. {'; '.join(parts)}.", paint, height=0.75 + 0.3 * len(shown))


def curve_panel(panels: Panels, title: str, rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """One column of a training log against the step, with a band of one standard error where ``key``_sem is logged."""
    points = [(i, number_of(row.get("step")), number_of(row.get(key)), row) for i, row in enumerate(rows)]
    shown = [(float(i) if x is None else x, y, row) for i, x, y, row in points if y is not None]
    if not shown:
        return None
    share = key in CURVE_SHARES or (key in METRICS and METRICS[key].unit == SHARE)

    def paint(axes: Axes) -> None:
        scale = 100 if share else 1
        x, y = [p[0] for p in shown], [p[1] * scale for p in shown]
        sem = [number_of(p[2].get(f"{key}_sem")) for p in shown]
        if any(s is not None for s in sem):
            low = [value - (s or 0) * scale for value, s in zip(y, sem, strict=True)]
            high = [value + (s or 0) * scale for value, s in zip(y, sem, strict=True)]
            axes.fill_between(x, low, high, color=stands_for(1), alpha=0.22, linewidth=0)
        sparse = len(x) <= 12
        axes.plot(x, y, color=stands_for(1), linewidth=1.6, marker="o" if sparse else None, markersize=4)
        axes.set_xlabel("step")
        axes.locator_params(nbins=6)
        if share:
            axes.yaxis.set_major_formatter("{x:.0f}%")

    first, last = shown[0], shown[-1]
    alt = (
        f"{title} over {len(shown)} points: {number_text(first[1], share)} at step {number_text(first[0])}, "
        f"{number_text(last[1], share)} at step {number_text(last[0])}, "
        f"lowest {number_text(min(p[1] for p in shown), share)}, "
        f"highest {number_text(max(p[1] for p in shown), share)}."
    )
    return panels.draw(title, alt, paint)


def reliability_panel(panels: Panels, title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Predicted probability against the share that came true; a calibrated judge lies on the diagonal."""
    pairs = [(number_of(r.get("p")), number_of(r.get("observed")), number_of(r.get("n")) or 0.0) for r in rows]
    shown = [(p, seen, n) for p, seen, n in pairs if p is not None and seen is not None]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        most = max(n for *_, n in shown) or 1.0
        axes.plot([p * 100 for p, *_ in shown], [s * 100 for _, s, _ in shown], color=stands_for(1), linewidth=1)
        axes.scatter([p * 100 for p, *_ in shown], [s * 100 for _, s, _ in shown],
                     s=[12 + 40 * n / most for *_, n in shown], color=stands_for(1), zorder=3)  # fmt: skip
        axes.set_xlabel("predicted")
        axes.set_ylabel("came true")
        axes.xaxis.set_major_formatter("{x:.0f}%")
        axes.yaxis.set_major_formatter("{x:.0f}%")

    alt = "; ".join(f"predicted {number_text(p, True)}, came true {number_text(s, True)}" for p, s, _ in shown)
    return panels.draw(title, f"{title}. {alt}.", paint, height=2.8)


def arms_of(report: Report) -> dict[str, dict[str, Any]]:
    """Arms in the order of the report, then those that only a metric or a sample names; each keeps its colour."""
    described = {str(arm.get("name")): str(arm.get("description") or "") for arm in mappings_in(report, "arms")}
    sampled = {str(arm.get("name")): sampling_words(arm.get("sampling")) for arm in mappings_in(report, "arms")}
    for row in mappings_in(report, "metrics"):
        described.setdefault(str(row.get("arm")), "")
    for sample in mappings_in(report, "samples"):
        for name in sample.get("responses") or {}:
            described.setdefault(str(name), "")
    free = [c for c in range(N_COLOURS) if c not in {ARM_COLOURS[n] for n in described if n in ARM_COLOURS}]
    arms = {}
    for position, (name, description) in enumerate(described.items()):
        colour = ARM_COLOURS.get(name)
        if colour is None:
            colour = free.pop(0) if free else position % N_COLOURS
        arms[name] = {"name": name, "description": description, "sampled": sampled.get(name, ""), "colour": colour}
    return arms


def by_arm(report: Report, name: str, group: str | None, arms: Mapping[str, Any]) -> list[tuple[str, int, Any]]:
    """(arm, colour, result) of one metric in one group, for each arm that has it."""
    results = {str(r.get("arm")): r for r in mappings_in(report, "metrics") if (r.get("name"), r.get("group")) == (name, group)}
    return [(arm, view["colour"], results[arm]) for arm, view in arms.items() if arm in results]


def first_metrics(report: Report) -> list[str]:
    """The metrics that stand first: the run's own measures, then the built-in headline ones that can be better or worse."""
    return [*(report.get("better") or {}), *(name for name in HEADLINE if METRICS[name].better)]


def headline_panels(report: Report, arms: Mapping[str, Any], panels: Panels) -> list[dict[str, Any]]:
    """One plot of each metric that stands first."""
    drawn = []
    for name in first_metrics(report):
        rows, share = by_arm(report, name, None, arms), is_share(name, report)
        limits = share_limits([r for *_, r in rows]) if share else None
        drawn.append(dots_panel(panels, title_of(name), rows, share=share, limits=limits))
    return [panel for panel in drawn if panel]


def directions(report: Report) -> str:
    """Which of the plots at the head are better to the left, and which to the right."""
    measured = {row.get("name") for row in mappings_in(report, "metrics")}
    sides: dict[str | None, list[str]] = {"lower": [], "higher": []}
    for name in first_metrics(report):
        if name in measured:
            sides[better_of(name, report)].append(lower_first(title_of(name)))
    words = {"lower": "Better to the left", "higher": "Better to the right"}
    return " ".join(f"{words[str(side)]}: {', '.join(unique(names))}." for side, names in sides.items() if names)


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def share_limits(rows: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """From 0 to a round number above every interval, so that panels of one metric can be compared."""
    ends = [number_of(r.get("value")) or 0.0 for r in rows] + [ci[1] for r in rows if (ci := interval_of(r))]
    return -0.01, min(1.01, math.ceil(max([0.095, *ends]) * 10 + 0.3) / 10)


def principles(report: Report, arms: Mapping[str, Any], panels: Panels) -> list[dict[str, Any]]:
    """A section of each metric that is known by group, with a plot of each group."""
    results = [r for r in mappings_in(report, "metrics") if r.get("group") is not None]
    sections = []
    for name in unique(r.get("name") for r in results):
        rows = [r for r in results if r.get("name") == name]
        share = is_share(name, report)
        limits = share_limits(rows) if share else None
        drawn = [
            dots_panel(panels, axis_label(group, 48), by_arm(report, name, group, arms), share=share, limits=limits)
            for group in unique(r.get("group") for r in rows)
        ]
        sections.append({"name": title_of(name), "panels": [panel for panel in drawn if panel]})
    return sections


def curves(report: Report, panels: Panels) -> list[dict[str, Any]]:
    """A section of each training with a plot of each logged number; five stand in front, the others are folded."""
    titles = {"rl": "Reinforcement learning", "reward_model": "Reward model", "sft": "Supervised fine-tuning"}
    units = {"kl": "KL to the reference (nats per response)", "entropy": "Entropy (nats per token)",
             "response_tokens": "Response length (tokens)", "harmful": "Harmful share of sampled responses"}  # fmt: skip
    first = ["reward", "kl", "entropy", "response_tokens", "harmful", "loss", "accuracy"]
    source = report.get("curves") or {}
    sections = []
    for stage in [*(s for s in titles if s in source), *(s for s in source if s not in titles)]:
        rows = mappings_in(source, stage)
        keys = unique(key for row in rows for key in row if key != "step" and not key.endswith("_sem"))
        keys.sort(key=lambda key: first.index(key) if key in first else len(first))
        title = "Reward (band: one standard error)"
        drawn = [
            curve_panel(panels, title if key == "reward" else units.get(key, title_of(key)), rows, key)
            for key in keys
            if any(number_of(row.get(key)) is not None for row in rows)
        ]
        shown = [panel for panel in drawn if panel]
        if shown:
            sections.append({"name": titles.get(stage, title_of(stage)), "main": shown[:5], "more": shown[5:]})
    return sections


def gold_view(report: Report, panels: Panels) -> dict[str, Any] | None:
    """The held-out reward and the reward that was trained on, against the distance from the start; None without a curve."""
    curve = report.get("over_optimisation")
    if not isinstance(curve, Mapping):
        return None
    rows = mappings_in(curve, "rows")
    drawn = [
        distance_panel(panels, title, rows, key, curve.get("fit") if key == "gold" else None)
        for title, key in (("Gold: the held-out reward", "gold"), ("Proxy: the reward that was trained on", "proxy"))
    ]
    fit, notes = curve.get("fit"), [str(curve.get("words"))]
    if isinstance(fit, Mapping) and number_of(fit.get("d_star")) is not None:
        notes.append(
            f"The curve of gold, fitted up to step {fit.get('until', rows[-1].get('step'))}, peaks at √KL = "
            f"{number_text(fit['d_star'])} with {number_text(fit['gold_at_d_star'])}."
        )
    return {"source": curve.get("source"), "notes": notes, "panels": [panel for panel in drawn if panel]}


def distance_panel(
    panels: Panels, title: str, rows: Sequence[Mapping[str, Any]], key: str, fit: Any = None
) -> dict[str, Any] | None:
    """One number of the curve against √KL, with its intervals, and the fitted curve d (a - b ln d) where there is one."""
    shown = [
        (d, y, row)
        for row in rows
        if (d := number_of(row.get("sqrt_kl"))) is not None and (y := number_of(row.get(key))) is not None
    ]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        for d, y, row in shown:
            ci = row.get(f"{key}_ci")
            if ci:
                axes.plot([d, d], ci, color=stands_for(1), linewidth=1.2, alpha=0.5)
            axes.plot(d, y, "o", color=stands_for(1), markersize=4)
        axes.plot([d for d, *_ in shown], [y for _, y, _ in shown], color=stands_for(1), linewidth=1)
        if isinstance(fit, Mapping):
            furthest = max(d for d, _, row in shown if row["step"] <= fit.get("until", math.inf))
            xs = [furthest * i / 60 for i in range(1, 61)]
            axes.plot(xs, [fit["start"] + x * (fit["a"] - fit["b"] * math.log(x)) for x in xs], color=INK, linewidth=1,
                      linestyle=(0, (4, 3)))  # fmt: skip
        axes.set_xlabel("√KL from the start (√nats)")

    points = "; ".join(f"step {row.get('step')}: {number_text(y)} at {number_text(d)}" for d, y, row in shown)
    return panels.draw(title, f"{title}. {points}.", paint)


def judge_view(judge: Mapping[str, Any], panels: Panels) -> dict[str, Any]:
    """One judge: accuracy by kind of pair, other checks, calibration."""
    groups = judge.get("groups") if isinstance(judge.get("groups"), Mapping) else {}
    unused = {f"all pairs, by {row.get('protocol')} (not used)": row
              for row in mappings_in(judge, "protocols") if not row.get("chosen")}  # fmt: skip
    rows = [{"kind": "all pairs", **judge}, *({"kind": kind, **row} for kind, row in (unused | dict(groups or {})).items())]
    views = [
        {"kind": row["kind"], "n": row.get("n", "–"), "accuracy": number_text(row.get("accuracy"), True),
         "ci": range_text(ci, True), "chance": "not shown to be better than chance" if ci is not None and ci[0] <= 0.5 else ""}
        for row, ci in ((row, interval_of(row)) for row in rows)
    ]  # fmt: skip
    facts = [
        ("Protocol", str(judge.get("protocol") or "–")),
        ("Same verdict after swapping the order", number_text(judge.get("swap_consistency"), True)),
        ("Expected calibration error", number_text(judge.get("ece"), True)),
        ("Position bias", f"{number_text(judge.get('position_bias_nats'))} nats"),
        ("Chose the same position in both orders", number_text(judge.get("same_position_share"), True)),
        ("Gave a verdict", number_text(judge.get("verdict_rate"), True)),
    ]
    people = judge.get("people")
    if isinstance(people, Mapping):
        ci = interval_of(people)
        between = "" if ci is None else f" ({range_text(ci, True)})"
        facts.append(("Prefers what people prefer", f"{number_text(people.get('agreement'), True)}{between}, "
                      f"{people.get('n')} votes on pairs of {people.get('prompts')} prompts"))  # fmt: skip
    rule = judge.get("priorities")
    if isinstance(rule, Mapping):
        ci = interval_of(rule)
        between = "" if ci is None else f" ({range_text(ci, True)})"
        facts.append(("By priority, right where a principle decides", f"{number_text(rule.get('accuracy'), True)}{between} of "
                      f"{rule.get('n')} pairs; {rule.get('undecided')} undecided"))  # fmt: skip
    chart = reliability_panel(panels, f"Calibration of {axis_label(judge.get('id'), 40)}", mappings_in(judge, "reliability"))
    return {
        "id": judge.get("id"),
        "role": judge.get("role") or "",
        "rows": views,
        "facts": [(name, text) for name, text in facts if not text.startswith("–")],
        "panel": chart,
    }


MEASURE_OF = {
    "harmful_compliance": "harmful", "over_refusal": "refusal", "red_team_refusal": "refusal", "engaged_refusal": "refusal",
    "partial_refusal": "refusal", "helpfulness": "helpful", "honesty": "honest",
}  # fmt: skip
"""What a scorer decides of an answer behind each of its rates."""
CARD_SHARES = ("accuracy", "recall", "specificity", "precision")


def card_note(report: Report, name: str) -> str:
    """How often the scorer of a metric is right, by its card; empty without a card."""
    of, measure = ("scorer", MEASURE_OF[name]) if name in MEASURE_OF else (name, None)
    for card in mappings_in(report, "scorers"):
        for row in mappings_in(card, "measures") if card.get("of") == of else ():
            right = row.get("accuracy")
            if measure in (None, row.get("measure")) and isinstance(right, Mapping) and number_of(right.get("value")) is not None:
                ci = interval_of(right)
                between = "" if ci is None else f" ({range_text(ci, True)})"
                return f"agrees with {number_text(right['value'], True)}{between} of {right.get('n')} labels of people"
    return ""


def scorers_view(report: Report, panels: Panels) -> list[dict[str, Any]]:
    """Each measure of each card of a scorer: its shares over all labelled answers and by group, and its calibration."""
    views = []
    for card in mappings_in(report, "scorers"):
        for measure in mappings_in(card, "measures"):
            parts = [("all labelled answers", measure)]
            by = measure.get("by")
            for column, values in (by if isinstance(by, Mapping) else {}).items():
                parts += [(f"{column}: {value}", row) for value, row in values.items()]
            rows = [
                {"part": part, "n": row.get("n"), "unscored": row.get("n_unscored"),
                 "shares": [(number_text(share.get("value"), True), range_text(interval_of(share), True))
                            for share in (row.get(key) or {} for key in CARD_SHARES)]}
                for part, row in parts
            ]  # fmt: skip
            facts = [(words, number_text(measure.get(key))) for words, key in (
                ("Brier score", "brier"), ("Expected calibration error", "ece"), ("Area under the ROC curve", "auc")
            ) if number_of(measure.get(key)) is not None]  # fmt: skip
            title = f"Calibration of {axis_label(card.get('scorer'), 40)}: {measure.get('measure')}"
            chart = reliability_panel(panels, title, mappings_in(measure, "reliability"))
            views.append({"scorer": card.get("scorer"), "measure": measure.get("measure"), "labelled": card.get("labelled"),
                          "rows": rows, "facts": facts, "panel": chart})  # fmt: skip
    return views


def reward_model_view(model: Mapping[str, Any], panels: Panels) -> dict[str, Any] | None:
    """Accuracy, calibration and a sentence on the reward model; None without one."""
    if not model:
        return None
    baselines = {"Shorter response wins": "baseline_shorter_wins", "Longer response wins": "baseline_longer_wins"}
    rows: list[tuple[str, int, Mapping[str, Any]]] = [
        ("Reward model", 1, {"value": model.get("accuracy"), "ci": model.get("ci")})
    ]
    rows += [(label, 0, {"value": model.get(key)}) for label, key in baselines.items()]
    groups = model.get("groups")
    for kind, row in (groups if isinstance(groups, Mapping) else {}).items():
        rows.append((str(kind), 2, {"value": row.get("accuracy"), "ci": row.get("ci")}
                     if isinstance(row, Mapping) else {"value": row}))  # fmt: skip
    known = [share for key in baselines.values() if (share := number_of(model.get(key))) is not None]
    ci, accuracy = interval_of(model), number_of(model.get("accuracy"))
    sentence = ""
    if accuracy is not None:
        sentence = f"Right on {number_text(accuracy, True)} of {model.get('n', '?')} held-out pairs"
        sentence += "." if ci is None else f" ({range_text(ci, True)})."
        if ci is not None and known:
            best = max(known)
            beats = "It beats" if ci[0] > best else "It is not shown to beat"
            sentence += f" {beats} the better of the two rules on length alone ({number_text(best, True)})."
    if number_of(model.get("ece")) is not None:
        sentence += f" Expected calibration error: {number_text(model.get('ece'), True)}."
    drawn = [
        dots_panel(panels, "Accuracy on held-out pairs", rows, share=True, limits=(0.3, 1.01), line=0.5, line_name="chance"),
        reliability_panel(panels, "Calibration of the reward model", mappings_in(model, "reliability")),
    ]
    return {"sentence": sentence, "panels": [panel for panel in drawn if panel]}


def revisions_view(revisions: Mapping[str, Any], panels: Panels) -> dict[str, Any] | None:
    """Harm by round of revision, and the rows that were excluded; None without revisions."""
    if not revisions:
        return None
    rounds = mappings_in(revisions, "rounds")
    rows = [(f"round {r.get('round')}", 1, {"value": r.get("harmful"), "ci": r.get("ci")}) for r in rounds]
    if rows:
        rows[0] = ("first response" if rounds[0].get("round") == 0 else rows[0][0], 0, rows[0][2])
    chart = dots_panel(panels, "Harmful share by round", rows, share=True, limits=share_limits([r for *_, r in rows]))
    table = [
        {"round": label, "n": r.get("n", "–"), "harmful": metric_cell({**r, "value": r.get("harmful"), "unit": "share"}),
         "mean_chars": number_text(r.get("mean_chars"))}
        for (label, _, _), r in zip(rows, rounds, strict=True)
    ]  # fmt: skip
    excluded = revisions.get("excluded")
    return {
        "panel": chart,
        "rounds": table,
        "excluded": list(excluded.items()) if isinstance(excluded, Mapping) else [],
        "kept": revisions.get("kept"),
    }
