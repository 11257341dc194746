"""What the commands about votes print, return as JSON and draw. Names from files are untrusted text: never markup, never
control characters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from charter.errors import InputError
from charter.feedback.agreement import ANCHORS, Figure, agreement
from charter.feedback.comparisons import Votes, comparisons_of, single_orders
from charter.feedback.exports import write_csv
from charter.feedback.leaderboard import Leaderboard, leaderboard
from charter.feedback.personal import NONE, OWN, SHARED, UNKNOWN, Taste
from charter.feedback.rater_model import fit_raters
from charter.feedback.raters import RaterLine, rater_lines
from charter.feedback.response_ratings import PromptRatings, rate_responses
from charter.records import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 40  # rows of a table on the terminal
INK, MARK, FAINT = "#1f2937", "#2563eb", "#d1d5db"


def ratings_report(votes: Votes, of: str, *, equal_raters: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Ratings of ``models`` or ``responses`` as (JSON, lines). InputError where no two of them were compared."""
    comparisons = comparisons_of(votes, of)
    if not len(comparisons):
        raise InputError("holds no comparison of two " + ("different models" if of == "models" else "responses")
                         + f" ({counted(votes, comparisons.same_model)})")  # fmt: skip
    head = f"{len(comparisons):,} comparisons from {counted(votes, comparisons.same_model)}"
    result: dict[str, Any] = {"of": of, "comparisons": len(comparisons), "said": votes.said, "raters": len(votes.raters),
                              "prompts": len(np.unique(comparisons.prompt)), "same_model": comparisons.same_model}  # fmt: skip
    questions = sorted({QUESTION_NAMES[q] for q in votes.question.tolist()})
    if len(questions) > 1:
        head += f"; asked for {' and '.join(questions)} together"
    if of == "models":
        board = leaderboard(comparisons, equal_raters=equal_raters)
        return result | _board_json(board), [head, *_board_lines(board)]
    found = fit_raters(comparisons, equal_raters=equal_raters)
    rated = rate_responses(comparisons, votes.prompts, found)
    result |= {"spread": found.sd, "prompts_rated": [_prompt_json(one) for one in rated]}
    result["contested"] = sum(one.contested for one in rated)
    return result, [head, *_response_lines(rated)]


QUESTION_NAMES = ("better", "more_harmless", "more_harmful")


def counted(votes: Votes, same_model: int = 0) -> str:
    """What was read and what was left out, in words."""
    n, raters, prompts = votes.said.get("judgments", 0), len(votes.raters), len(votes.prompts)
    left = {
        "without verdict": votes.said.get("no verdict", 0),
        "superseded": votes.said.get("superseded", 0),
        "both bad": votes.said.get("both bad", 0),
        "pairs of one model": same_model + votes.said.get("same model", 0),
    }
    words = [f"{count:,} {what}" for what, count in left.items() if count]
    return (f"{n:,} judgments by {raters:,} rater{'s' * (raters != 1)} on {prompts:,} prompt{'s' * (prompts != 1)}"
            + (f"; left out: {', '.join(words)}" if words else ""))  # fmt: skip


def _board_json(board: Leaderboard) -> dict[str, Any]:
    rows = [
        {"model": model, "rating": float(rating), "ci": [float(rating - reach), float(rating + reach)], "ranks": list(ranks),
         "won": float(won), "tied": float(tied), "lost": float(lost), "comparisons": float(total),
         "elo": None if board.elo is None else float(board.elo[i])}
        for i, (model, rating, reach, ranks, (won, tied, lost, total)) in enumerate(
            zip(board.models, board.ratings, board.reach, board.ranks, board.played, strict=True))
    ]  # fmt: skip
    return {
        "models": rows,
        "unit": "points; 400 are odds of ten to one",
        "method": board.method,
        "groups": board.parts,
        "rater_effects": board.effects,
        "tie_odds": board.tie_odds,
        "gap": None
        if board.gap is None
        else {"value": board.gap[0], "ci": [board.gap[0] - board.gap[1], board.gap[0] + board.gap[1]]},
        "separate_times": board.separate,
        "flip": None if board.flip is None else {"model": board.flip[0], "dropped_judgments": board.flip[1]},
    }


def _board_lines(board: Leaderboard) -> list[str]:
    width = max(8, *(len(plain(model)) for model in board.models))
    lines = [
        f"{'rank':>7}  {'model':{width}} {'rating':>7}  {'95 % interval':>15} {'won':>9} {'tied':>9} {'lost':>9} {'Elo (live)':>11}"
    ]
    for i, model in enumerate(board.models[:SHOWN]):
        best, worst = board.ranks[i]
        low, high = board.ratings[i] - board.reach[i], board.ratings[i] + board.reach[i]
        won, tied, lost, _ = board.played[i]
        elo = "–" if board.elo is None else f"{board.elo[i]:.0f}"
        ranks = f"{best}" if best == worst else f"{best}–{worst}"
        lines.append(
            f"{ranks:>7}  {plain(model):{width}} {board.ratings[i]:7.0f}  {f'[{low:.0f}, {high:.0f}]':>15} {won:9,.0f} {tied:9,.0f} "
            f"{lost:9,.0f} {elo:>11}"
        )
    if len(board.models) > SHOWN:
        lines.append(f"… and {len(board.models) - SHOWN} more (--json, --out)")
    lines.append(
        f"intervals {board.method}; ranks: all that are compatible with them"
        + (f"; {board.effects} rater effects" if board.effects else "")
    )
    if board.parts > 1:
        lines.append(
            f"the models fall into {board.parts} groups that no comparison joins: ratings across them rest on the prior alone"
        )
    if board.gap is not None:
        first, second = plain(board.models[0]), plain(board.models[1])
        gap, reach = board.gap
        words = f"{first} over {second}: {gap:.0f} points [{gap - reach:.0f}, {gap + reach:.0f}]"
        if board.separate is not None and board.separate > 1:
            words += f"; about {board.separate:.1f} times these votes would tell them apart"
        lines.append(words)
    if board.flip is not None:
        rival, drop = board.flip
        lines.append(
            f"votes that decide the top: without {drop:,} judgment{'s' * (drop != 1)}, {plain(rival)} would be ahead of {plain(board.models[0])}"
        )
    elif len(board.models) > 1:
        lines.append("votes that decide the top: dropping up to half of the judgments does not change it")
    return lines


def _prompt_json(one: PromptRatings) -> dict[str, Any]:
    rows = [
        {
            "response": response,
            "rating": float(rating),
            "ci": [float(rating - reach), float(rating + reach)],
            "ranks": list(ranks),
        }
        for response, rating, reach, ranks in zip(one.responses, one.ratings, one.reach, one.ranks, strict=True)
    ]
    return {
        "prompt": one.prompt,
        "votes": one.votes,
        "p_best": one.p_best,
        "contested": one.contested,
        "responses": rows,
    }


def _response_lines(rated: Sequence[PromptRatings]) -> list[str]:
    lines = [f"{'prompt':18} {'response':18} {'ranks':>6} {'rating':>7}  95 % interval"]
    for one in rated[: SHOWN // 4]:
        for i, response in enumerate(one.responses):
            best, worst = one.ranks[i]
            low, high = one.ratings[i] - one.reach[i], one.ratings[i] + one.reach[i]
            state = " contested" if i == 0 and one.contested else ""
            lines.append(
                f"{plain(one.prompt, 18) if i == 0 else '':18} {plain(response, 18):18} {f'{best}–{worst}':>6} {one.ratings[i]:7.2f}  "
                f"[{low:.2f}, {high:.2f}]{state}"
            )
    if len(rated) > SHOWN // 4:
        lines.append(f"… and {len(rated) - SHOWN // 4:,} more prompts (--json, --out)")
    contested = sum(one.contested for one in rated)
    lines.append(
        f"{contested:,} of {len(rated):,} prompts contested: the best is better than the next with a probability below .75; ratings in log-odds"
    )
    return lines


def agreement_report(votes: Votes) -> tuple[dict[str, Any], list[str]]:
    """Agreement and the table of raters as (JSON, lines). InputError as in :func:`charter.feedback.agreement.agreement`."""
    figures = agreement(votes)
    raters = rater_lines(votes, fit_raters(single_orders(votes))) if len(votes.x) else []
    result = {
        "said": votes.said, "agreement": [asdict(figure) for figure in figures], "raters": [asdict(line) for line in raters],
        "anchors": [dict(zip(("work", "pair_agreement", "source"), anchor, strict=True)) for anchor in ANCHORS],
    }  # fmt: skip
    lines = [counted(votes), "", *(_figure_line(figure) for figure in figures), "", "published, for comparison:"]
    lines += [f"  {work:42} {value:14} {source}" for work, value, source in ANCHORS]
    return result, [*lines, "", *rater_table(raters)]


def _figure_line(figure: Figure) -> str:
    value = "not measurable" if figure.value is None else f"{figure.value:.3f}"
    interval = "" if figure.ci is None else f"[{figure.ci[0]:.3f}, {figure.ci[1]:.3f}]"
    return f"{figure.name:32} {value:>6} {interval:16} {figure.n:,} {figure.unit} in {figure.n_prompts:,} prompts"


def rater_table(raters: Sequence[RaterLine]) -> list[str]:
    """The raters as lines, the least reliable first."""
    if not raters:
        return []
    width = max(5, *(len(plain(line.rater)) for line in raters))
    lines = [
        f"{'rater':{width}} {'kind':12} {'votes':>6} {'β':>6} {'95 %':14} {'γ':>6} {'95 %':14} {'agrees':>6} {'ties':>5} {'F':>5} {'s/vote':>6} "
        f"{'repeats':>7}"
    ]
    for line in raters:
        beta, gamma = (f"[{low:.2f}, {high:.2f}]" for low, high in (line.beta_ci, line.gamma_ci))
        lines.append(
            f"{plain(line.rater):{width}} {line.kind:12} {line.votes:6,} {line.beta:6.2f} {beta:14} {line.gamma:6.2f} {gamma:14} {_percent(line.agrees):>6} "
            f"{_percent(line.tie_rate):>5} {_percent(line.failed_rate):>5} {'–' if line.seconds is None else f'{line.seconds:.0f}':>6} "
            f"{_percent(line.repeats):>7} {', '.join(line.words)}".rstrip()
        )
    return [
        *lines,
        "β: 1 follows the others like an average vote, 0 a coin, below 0 reversed. γ: nats for the response shown first.",
    ]


def taste_report(found: Sequence[Taste], votes: Votes) -> tuple[dict[str, Any], list[str]]:
    """The tastes of raters as (JSON, lines)."""
    width = max(5, *(len(plain(one.rater)) for one in found))
    lines = [
        counted(votes),
        f"{'rater':{width}} {'votes':>6}  {'own head':19} {'pooled head':19} {'gain, nats a vote':22} verdict",
    ]
    for one in sorted(found, key=lambda one: (one.own is None, one.own)):
        own, pooled = (_with_interval(*pair, ".2f") for pair in ((one.own, one.own_ci), (one.pooled, one.pooled_ci)))
        lines.append(
            f"{plain(one.rater):{width}} {one.votes:6,}  {own:19} {pooled:19} {_with_interval(one.gain, one.gain_ci, '.3f'):22} {one.word}"
        )
    lines.append(
        "shares of the votes that a head predicts which has not seen their prompts; own taste is different, not bad"
    )
    return {"said": votes.said, "raters": [asdict(one) for one in found]}, lines


def _with_interval(value: float | None, ci: Sequence[float] | None, form: str) -> str:
    if value is None:
        return "–"
    return f"{value:{form}}" + (f" [{ci[0]:{form}}, {ci[1]:{form}}]" if ci else "")


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
                [row["pooled"] for row in chosen],
                [row["own"] for row in chosen],
                "o",
                color=colour,
                markersize=5,
                label=word,
            )
        for row in rows:
            axes.annotate(
                plain(row["rater"], 16),
                (row["pooled"], row["own"]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=7,
            )
        ends = [end for row in rows for end in (*row["own_ci"], *row["pooled_ci"])] or [0.0, 1.0]
        axes.set_xlim(min(ends) - 0.02, max(ends) + 0.02)
        axes.set_ylim(min(ends) - 0.02, max(ends) + 0.02)
        axes.set_ylabel("votes predicted by the rater's own head")
        axes.legend(frameon=False, loc="lower right")

    _draw(out / "tastes.png", paint, "votes predicted by the pooled head", 18)
    return [out / "tastes.json", out / "tastes.png"]


WORD_COLOURS = {SHARED: MARK, OWN: "#059669", NONE: "#dc2626", UNKNOWN: "#6b7280"}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def plain(text: str, length: int = 32) -> str:
    """A name from a file for a terminal or an axis: printable, on one line, not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


# -- files ---------------------------------------------------------------------------------------------------------------


def write_ratings(result: Mapping[str, Any], out: Path) -> list[Path]:
    """ratings.json and ratings.csv, and for models the picture ratings.png."""
    write_json(out / "ratings.json", result)
    if result["of"] == "models":
        rows = result["models"]
        write_csv(out / "ratings.csv", ("model", "rating", "low", "high", "best_rank", "worst_rank", "comparisons"),
                  ([row["model"], row["rating"], *row["ci"], *row["ranks"], row["comparisons"]] for row in rows))  # fmt: skip
        _draw(out / "ratings.png", lambda axes: _dots(axes, [(row["model"], row["rating"], row["ci"]) for row in rows[:SHOWN]]),
              "rating, points (95 % interval)", min(len(rows), SHOWN))  # fmt: skip
        return [out / name for name in ("ratings.json", "ratings.csv", "ratings.png")]
    write_csv(out / "ratings.csv", ("prompt", "response", "rating", "low", "high", "best_rank", "worst_rank", "p_best"),
              ([one["prompt"], row["response"], row["rating"], *row["ci"], *row["ranks"], one["p_best"]]
               for one in result["prompts_rated"] for row in one["responses"]))  # fmt: skip
    return [out / "ratings.json", out / "ratings.csv"]


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
        (
            [*(row[name] for name in columns), *row["beta_ci"], *row["gamma_ci"], "; ".join(row["words"])]
            for row in raters
        ),
    )
    shown = [(row["rater"], row["beta"], row["beta_ci"]) for row in reversed(raters[:SHOWN])]
    _draw(out / "raters.png", lambda axes: (_dots(axes, shown), axes.axvline(0, color=INK, linewidth=0.8)),
          "β: 1 an average vote, 0 a coin (95 % interval)", len(shown))  # fmt: skip
    return [out / name for name in ("agreement.json", "raters.csv", "raters.png")]


def _dots(axes: Axes, rows: Sequence[tuple[str, float, Sequence[float]]]) -> None:
    """A dot and its interval a row, the first on top."""
    for place, (_, value, (low, high)) in enumerate(rows):
        axes.plot([low, high], [place, place], color=MARK, linewidth=1.5, solid_capstyle="round")
        axes.plot([value], [place], "o", color=MARK, markersize=4)
    axes.set_yticks(range(len(rows)), [plain(name, 28) for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _draw(path: Path, paint: Callable[[Axes], Any], label: str, rows: int) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Picture

    style: Any = {
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "text.color": INK,
        "ytick.major.size": 0,
        "xtick.major.size": 0,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        picture = Picture(figsize=(6.4, max(2.0, 0.24 * rows + 0.9)), layout="constrained", dpi=144)
        axes = picture.add_subplot()
        paint(axes)
        axes.set_xlabel(label)
        with atomic_path(path) as temporary:
            picture.savefig(temporary, format="png", metadata={"Software": None})
