"""The files of the commands about votes: JSON, CSV, and pictures, whose names are text and never markup."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charter.raters.personal import NONE, OWN, SHARED, UNKNOWN
from charter.raters.reports import SHOWN
from charter.reading.card import shown
from charter.reading.prompts import prompt_text
from charter.records import Prompt, Response
from charter.run.files import atomic_path, write_json
from charter.votes.exports import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATED = ("rating", "low", "high", "best_rank", "worst_rank", "p_best", "prompt_id", "response_id")
INK, MARK, FAINT = "#1f2937", "#2563eb", "#d1d5db"
WORD_COLOURS = {SHARED: MARK, OWN: "#059669", NONE: "#dc2626", UNKNOWN: "#6b7280"}


def write_ratings(
    result: Mapping[str, Any], out: Path, texts: tuple[Mapping[str, Prompt], Mapping[str, Response]] | None = None
) -> list[Path]:
    """ratings.json and ratings.csv, and for models the picture ratings.png. With the ``texts`` of responses (prompts and
    responses by id) ratings.csv is a file of ratings that a reward model is trained on; without them it has ids alone."""
    write_json(out / "ratings.json", result)
    if result["of"] == "models":
        rows = result["models"]
        write_csv(out / "ratings.csv", ("model", "rating", "low", "high", "best_rank", "worst_rank", "comparisons"),
                  ([row["model"], row["rating"], *row["ci"], *row["ranks"], row["comparisons"]] for row in rows))  # fmt: skip
        _draw(out / "ratings.png", lambda axes: _dots(axes, [(row["model"], row["rating"], row["ci"]) for row in rows[:SHOWN]]),
              "rating, points (95 % interval)", min(len(rows), SHOWN))  # fmt: skip
        return [out / name for name in ("ratings.json", "ratings.csv", "ratings.png")]
    columns = (*(("prompt", "response") if texts else ()), *RATED)
    write_csv(out / "ratings.csv", columns,
              ([*_texts(prompt["prompt"], row["response"], texts), row["rating"], *row["ci"], *row["ranks"], prompt["p_best"],
                prompt["prompt"], row["response"]]
               for prompt in result["prompts_rated"] for row in prompt["responses"]))  # fmt: skip
    return [out / "ratings.json", out / "ratings.csv"]


def _texts(prompt: str, response: str, texts: tuple[Mapping[str, Prompt], Mapping[str, Response]] | None) -> list[str]:
    return [] if texts is None else [prompt_text(texts[0][prompt]), texts[1][response].text]


def write_agreement(result: Mapping[str, Any], out: Path) -> list[Path]:
    """agreement.json, and the raters as raters.csv and raters.png."""
    write_json(out / "agreement.json", result)
    raters = result["raters"]
    if not raters:
        return [out / "agreement.json"]
    columns = [name for name in raters[0] if not name.endswith("_ci") and name != "words"]
    write_csv(
        out / "raters.csv",
        (*columns, "beta_low", "beta_high", "gamma_low", "gamma_high", "words"),
        ([*(row[name] for name in columns), *row["beta_ci"], *row["gamma_ci"], "; ".join(row["words"])] for row in raters),
    )
    shown = [(row["rater"], row["beta"], row["beta_ci"]) for row in reversed(raters[:SHOWN])]

    def paint(axes: Axes) -> None:
        _dots(axes, shown)
        axes.axvline(0, color=INK, linewidth=0.8)

    _draw(out / "raters.png", paint, "β: 1 an average vote, 0 a coin (95 % interval)", len(shown))
    return [out / name for name in ("agreement.json", "raters.csv", "raters.png")]


def write_tastes(result: Mapping[str, Any], out: Path) -> list[Path]:
    """tastes.json, and tastes.png: how well each rater's own head predicts it, over how well the pooled one does."""
    write_json(out / "tastes.json", result)
    rows = [row for row in result["raters"] if row["own"] is not None]

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for level in (axes.axhline, axes.axvline):
            level(0.5, color=INK, linewidth=0.8)
        for row in rows:
            (left, right), (low, high) = row["pooled_ci"], row["own_ci"]
            axes.plot([left, right], [row["own"]] * 2, color=FAINT, linewidth=1)
            axes.plot([row["pooled"]] * 2, [low, high], color=FAINT, linewidth=1)
        for word, colour in WORD_COLOURS.items():
            chosen = [row for row in rows if row["word"] == word]
            axes.plot(
                [row["pooled"] for row in chosen], [row["own"] for row in chosen], "o", color=colour, markersize=5, label=word
            )
        for row in rows:
            axes.annotate(
                shown(row["rater"], 16), (row["pooled"], row["own"]), xytext=(4, 3), textcoords="offset points", fontsize=7
            )
        ends = [end for row in rows for end in (*row["own_ci"], *row["pooled_ci"])] or [0.0, 1.0]
        axes.set_xlim(min(ends) - 0.02, max(ends) + 0.02)
        axes.set_ylim(min(ends) - 0.02, max(ends) + 0.02)
        axes.set_ylabel("votes predicted by the rater's own head")
        axes.legend(frameon=False, loc="lower right")

    _draw(out / "tastes.png", paint, "votes predicted by the pooled head", 18)
    return [out / "tastes.json", out / "tastes.png"]


def _dots(axes: Axes, rows: Sequence[tuple[str, float, Sequence[float]]]) -> None:
    """A dot and its interval a row, the first on top."""
    for place, (_, value, (low, high)) in enumerate(rows):
        axes.plot([low, high], [place, place], color=MARK, linewidth=1.5, solid_capstyle="round")
        axes.plot([value], [place], "o", color=MARK, markersize=4)
    axes.set_yticks(range(len(rows)), [shown(name, 28) for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _draw(path: Path, paint: Callable[[Axes], Any], label: str, rows: int) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    style: Any = {
        "text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
        "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "text.color": INK,
        "ytick.major.size": 0, "xtick.major.size": 0,
    }  # fmt: skip
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        picture = Picture(figsize=(6.4, max(2.0, 0.24 * rows + 0.9)), layout="constrained", dpi=144)
        axes = picture.add_subplot()
        paint(axes)
        axes.set_xlabel(label)
        with atomic_path(path) as temporary:
            picture.savefig(temporary, format="png", metadata={"Software": None})
