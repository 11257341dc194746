"""A comparison as one self-contained HTML page, in the look of a run's report, and as the table that a notebook shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import charter.comparing
import charter.evaluation
from charter import __version__
from charter.comparing.findings import RULES, Contrast, Findings
from charter.comparing.tables import CORRECTED, interval_text, points_text, rank_text, share_text, size_text
from charter.evaluation.words import number_text, p_text

MOST_FLIPS = 200
"""Items of one direction on the page; --json has all."""


def page_html(comparison: Findings) -> str:
    """The page. Everything in it may come from a model's file: Jinja2 escapes it, and the page allows no script."""
    return str(template_of("compare.html").render(views_of(comparison)))


def table_html(comparison: Findings) -> str:
    """The table of contrasts alone."""
    return str(template_of("contrasts.html").render(views_of(comparison)))


def template_of(name: str, *folders: Path) -> Any:
    """A template of ``folders``, of this room or of the report (its ``page.html``), which escapes all that is put into it."""
    from jinja2 import Environment, FileSystemLoader

    places = [*folders, *(Path(room.__path__[0]) / "templates" for room in (charter.comparing, charter.evaluation))]
    return Environment(loader=FileSystemLoader(places), autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def views_of(comparison: Findings) -> dict[str, Any]:
    """A comparison in the words of the page."""
    binary = {c.name: c.binary for c in comparison.contrasts}
    reach = {name: max(reach_of(c) for c in comparison.contrasts if c.name == name) for name in binary}
    return {
        "files": comparison.files,
        "rows": [contrast_view(contrast, reach[contrast.name]) for contrast in comparison.contrasts],
        "corrected": None if comparison.correction == "none" else CORRECTED[comparison.correction],
        "ranks": [
            {"name": rank.name, "model": rank.model, "value": share_text(rank.value, binary[rank.name]), "n": rank.n,
             "ranks": rank_text(rank), "tied": ", ".join(rank.tied_with) or "–"}
            for rank in comparison.ranks
        ],
        "left_out": comparison.left_out,
        "rules": RULES,
        "summary": summary_of(comparison),
        "version": __version__,
    }  # fmt: skip


def summary_of(comparison: Findings) -> dict[str, str]:
    """The word of the page: that of the only contrast, else how often each word was given."""
    words = Counter(contrast.verdict for contrast in comparison.contrasts)
    tone = "bad" if words["worse"] else "good" if words["better"] or words["equivalent"] else "open"
    if len(comparison.contrasts) == 1:
        c = comparison.contrasts[0]
        difference = f"{points_text(c.difference, c.binary)}{' points' if c.binary else ''}"
        text = f"{c.name}, {c.a} → {c.b}: {difference}, 95% interval {interval_text(c.ci, c.binary)}, n = {c.n}."
        return {"tone": tone, "word": c.verdict.capitalize(), "text": text}
    counts = ", ".join(f"{n} {word}" for word, n in words.most_common())
    return {"tone": tone, "word": counts, "text": f"{len(comparison.contrasts)} comparisons on the same items."}


def contrast_view(c: Contrast, reach: float) -> dict[str, Any]:
    """A contrast in the words of the page; its interval on a scale from −reach to +reach."""
    details = [f"Smallest difference that 80% of such comparisons find: {size_text(c.minimum_detectable, c.binary)}"]
    if c.n_clusters < c.n:
        details.append(f"{c.n_clusters} clusters, design effect {number_text(c.design_effect)}")
    if c.margin is not None and c.equivalence_level is not None:
        details.append(f"Margin {size_text(c.margin, c.binary)}: {100 * c.equivalence_level:.4g}% interval "
                       f"{interval_text(c.equivalence_ci, c.binary)}")  # fmt: skip
    named = [(f"1 only in {model}", c.flips[side]) for side, model in (("only_a", c.a), ("only_b", c.b))] if c.flips else []
    named += [(f"missing in {model}", c.missing[side]) for side, model in (("a", c.a), ("b", c.b)) if c.missing[side]]
    named += [("unscored", c.unscored)] if c.unscored else []
    return {
        "name": c.name, "a": c.a, "b": c.b, "n": c.n, "value_a": share_text(c.value_a, c.binary),
        "value_b": share_text(c.value_b, c.binary),
        "difference": points_text(c.difference, c.binary) + (" points" if c.binary and c.difference is not None else ""),
        "ci": interval_text(c.ci, c.binary), "p": p_text(c.p), "corrected": p_text(c.p_corrected), "verdict": c.verdict,
        "discordant": "–" if c.discordant is None else f"{c.discordant[0]} / {c.discordant[1]}", "method": c.method,
        "details": details, "bar": bar_of(c, reach), "n_missing": c.n_missing, "n_unscored": c.n_unscored,
        "differs": any(names for _, names in named),
        "lists": [{"label": label, "n": len(names), "names": names[:MOST_FLIPS]} for label, names in named],
    }  # fmt: skip


def reach_of(c: Contrast) -> float:
    """The largest size that the line of a contrast has to show."""
    ends = [abs(end) for end in (*(c.ci or ()), c.margin or 0.0)]
    return 1.1 * float(max(ends))


def bar_of(c: Contrast, reach: float) -> dict[str, float] | None:
    """The interval as a line on a scale that is symmetric about 0, in percent of its width; the margin too, where there is
    one."""
    if c.ci is None or c.difference is None or reach == 0:
        return None

    def at(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    bar = {"low": at(c.ci[0]), "high": at(c.ci[1]), "dot": at(c.difference)}
    return bar | ({"from": at(-c.margin), "to": at(c.margin)} if c.margin else {})
