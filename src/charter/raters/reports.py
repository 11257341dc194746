"""What the commands about votes print and return as JSON. Names from files are untrusted: printable, on one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from charter.errors import InputError
from charter.raters.agreement import ANCHORS, Figure, agreement_figures
from charter.raters.comparisons import Votes, as_comparisons, single_orders
from charter.raters.groups import group_figures, lines_by_group, without_group
from charter.raters.leaderboard import Leaderboard, leaderboard
from charter.raters.lines import RaterLine, rater_lines
from charter.raters.personal import MIN_VOTES, HeldOut, tastes
from charter.raters.reliability import fit_raters
from charter.raters.responses import PromptRatings, rate_responses
from charter.raters.vote_files import FOR_ROLE
from charter.reading.card import shown
from charter.votes.winners import NOT_BLIND, SAMPLED_OUT

SHOWN = 40  # rows of a table on the terminal


def ratings_report(votes: Votes, of: str, *, equal_raters: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Ratings of ``models`` or ``responses`` as (JSON, lines). InputError if no two of them were compared."""
    comparisons = as_comparisons(votes, of)
    if not len(comparisons):
        words = "no comparison of two " + ("different models" if of == "models" else "responses")
        remedy = "; --of responses rates the responses" if of == "models" and comparisons.same_model else ""
        raise InputError(f"{words} ({counted(votes, comparisons.same_model)}){remedy}")
    head = f"{len(comparisons):,} comparisons from {counted(votes, comparisons.same_model)}"
    result: dict[str, Any] = {"of": of, "comparisons": len(comparisons), "said": votes.totals, "raters": len(votes.raters),
                              "prompts": len(np.unique(comparisons.prompt)), "same_model": comparisons.same_model}  # fmt: skip
    questions = sorted({QUESTION_NAMES[q] for q in votes.question.tolist()})
    if len(questions) > 1:
        head += f"; asked for {' and '.join(questions)} together"
    if of == "models":
        board = leaderboard(comparisons, equal_raters=equal_raters, live=votes.in_order)
        return result | _board_json(board), [head, *_board_rows(board), *_board_notes(board)]
    model = fit_raters(comparisons, equal_raters=equal_raters)
    rated = rate_responses(comparisons, votes.prompts, model)
    result |= {"spread": model.sd, "prompts_rated": [_prompt_json(prompt) for prompt in rated]}
    result["contested"] = sum(prompt.contested for prompt in rated)
    return result, [head, *_response_lines(rated)]


QUESTION_NAMES = ("better", "more_harmless", "more_harmful")


def counted(votes: Votes, same_model: int = 0) -> str:
    """What was read and what was left out, in words."""
    n, raters, prompts = votes.totals.get("judgments", 0), len(votes.raters), len(votes.prompts)
    left = {
        "without verdict": votes.totals.get("no verdict", 0),
        "superseded": votes.totals.get("superseded", 0),
        "in two exports": votes.totals.get("repeated", 0),
        "forgotten": votes.totals.get("forgotten", 0),
        "both bad": votes.totals.get("both bad", 0),
        "pairs of one model": same_model + votes.totals.get("same model", 0),
        **{reason: votes.totals[reason] for reason in (NOT_BLIND, SAMPLED_OUT, *FOR_ROLE.values()) if reason in votes.totals},
    }
    words = [f"{count:,} {what}" for what, count in left.items() if count]
    return (f"{n:,} judgments by {raters:,} rater{'s' * (raters != 1)} on {prompts:,} prompt{'s' * (prompts != 1)}"
            + (f"; left out: {', '.join(words)}" if words else ""))  # fmt: skip


def _board_json(board: Leaderboard) -> dict[str, Any]:
    rows = [
        {"model": model, "rating": float(rating), "ci": _around(rating, reach), "ranks": list(ranks), "won": float(won),
         "tied": float(tied), "lost": float(lost), "comparisons": float(total),
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
        "gap": None if board.gap is None else {"value": board.gap[0], "ci": _around(*board.gap)},
        "separate_times": board.separate,
        "flip": None if board.flip is None else {"model": board.flip[0], "dropped_judgments": board.flip[1]},
        "notes": _board_notes(board),
    }


def _around(value: float, reach: float) -> list[float]:
    return [float(value - reach), float(value + reach)]


def _interval(value: float, reach: float, form: str) -> str:
    low, high = _around(value, reach)
    return f"[{low:{form}}, {high:{form}}]"


def _board_rows(board: Leaderboard) -> list[str]:
    rows = [["rank", "model", "rating", "95 % interval", "won", "tied", "lost", "Elo (live)"]]
    for i, model in enumerate(board.models[:SHOWN]):
        played = [f"{count:,.0f}" for count in board.played[i][:3]]
        elo = "–" if board.elo is None else f"{board.elo[i]:.0f}"
        rating = f"{board.ratings[i]:.0f}", _interval(board.ratings[i], board.reach[i], ".0f")
        rows.append([_ranks(board.ranks[i]), shown(model), *rating, *played, elo])
    lines = aligned(rows, left=1)
    if len(board.models) > SHOWN:
        lines.append(f"… and {len(board.models) - SHOWN} more (--json, --out)")
    return lines


def _board_notes(board: Leaderboard) -> list[str]:
    """What a reader has to know of the ratings, a line each."""
    effects = f"; {board.effects} rater effects" if board.effects else ""
    lines = [f"intervals {board.method}; ranks: all that are compatible with them{effects}"]
    if board.parts > 1:
        lines.append(f"the models fall into {board.parts} groups that no comparison joins: ratings across them rest on the prior "
                     "alone")  # fmt: skip
    if board.gap is not None:
        words = (
            f"{shown(board.models[0])} over {shown(board.models[1])}: {board.gap[0]:.0f} points {_interval(*board.gap, '.0f')}"
        )
        if board.separate is not None and board.separate > 1:
            words += f"; about {board.separate:.1f} times these votes would tell them apart"
        lines.append(words)
    if board.flip is not None:
        rival, drop = board.flip
        lines.append(f"votes that decide the top: without {drop:,} judgment{'s' * (drop != 1)}, {shown(rival)} would be ahead of "
                     f"{shown(board.models[0])}")  # fmt: skip
    elif len(board.models) > 1:
        lines.append("votes that decide the top: dropping up to half of the judgments does not change it")
    return lines


def _prompt_json(rated: PromptRatings) -> dict[str, Any]:
    rows = [
        {"response": response, "rating": float(rating), "ci": _around(rating, reach), "ranks": list(ranks)}
        for response, rating, reach, ranks in zip(rated.responses, rated.ratings, rated.reach, rated.ranks, strict=True)
    ]
    return {"prompt": rated.prompt, "votes": rated.votes, "p_best": rated.p_best, "contested": rated.contested, "responses": rows}


def _response_lines(rated: Sequence[PromptRatings]) -> list[str]:
    rows = [["prompt", "response", "ranks", "rating", "95 % interval", ""]]
    for prompt in rated[: SHOWN // 4]:
        for i, response in enumerate(prompt.responses):
            name, state = (shown(prompt.prompt, 18), "contested" if prompt.contested else "") if i == 0 else ("", "")
            rating = f"{prompt.ratings[i]:.2f}", _interval(prompt.ratings[i], prompt.reach[i], ".2f")
            rows.append([name, shown(response, 18), _ranks(prompt.ranks[i]), *rating, state])
    lines = aligned(rows, left=1)
    if len(rated) > SHOWN // 4:
        lines.append(f"… and {len(rated) - SHOWN // 4:,} more prompts (--json, --out)")
    contested = sum(prompt.contested for prompt in rated)
    lines.append(f"{contested:,} of {len(rated):,} prompts contested: the first is better than the next with P < .75; ratings in "
                 "log-odds")  # fmt: skip
    return lines


def _ranks(ranks: tuple[int, int]) -> str:
    return f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows as aligned lines: the columns up to number ``left`` and the last one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if place <= left or place == len(row) - 1 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def agreement_report(votes: Votes, groups: Mapping[str, str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Agreement and the table of raters as (JSON, lines). ``groups``: the group of each rater; then also agreement within and
    between groups, and each rater beside those of its group. InputError as in
    :func:`charter.raters.agreement.agreement_figures`."""
    figures = agreement_figures(votes)
    if groups is not None:
        figures += group_figures(votes, groups)
        by_group = lines_by_group(votes, groups)
    else:
        by_group = {"": rater_lines(votes, fit_raters(single_orders(votes)))} if len(votes.x) else {}
    raters = [(name, line) for name, lines in by_group.items() for line in lines]
    alone = without_group(votes.raters, groups) if groups is not None else []
    result = {
        "said": votes.totals, "agreement": [asdict(figure) for figure in figures],
        "raters": [asdict(line) | ({"group": name} if name else {}) for name, line in raters],
        **({"without_group": alone} if alone else {}),
        "anchors": [dict(zip(("work", "pair_agreement", "source"), anchor, strict=True)) for anchor in ANCHORS],
    }  # fmt: skip
    lines = [counted(votes), "", *(_figure_line(figure) for figure in figures), "", "published, for comparison:"]
    lines += [f"  {work:42} {value:14} {source}" for work, value, source in ANCHORS]
    if alone:
        lines.append(f"left out of the figures of groups: {len(alone)} raters without a group (first {shown(alone[0])})")
    for name, of_group in by_group.items():
        lines += ["", *([f"{shown(name)}, each rater beside the others of the group:"] if name else []), *rater_table(of_group)]
    return result, lines


def _figure_line(figure: Figure) -> str:
    value = "not measurable" if figure.value is None else f"{figure.value:.3f}"
    interval = "" if figure.ci is None else f"[{figure.ci[0]:.3f}, {figure.ci[1]:.3f}]"
    return f"{figure.name:32} {value:>6} {interval:16} {figure.n:,} {figure.unit} in {figure.n_prompts:,} prompts"


def rater_table(raters: Sequence[RaterLine]) -> list[str]:
    """The raters as lines, the least reliable first."""
    if not raters:
        return []
    rows = [["rater", "kind", "votes", "β", "95 %", "γ", "95 %", "agrees", "ties", "F", "s/vote", "repeats", ""]]
    for line in raters:
        slopes = [text for value, ci in ((line.beta, line.beta_ci), (line.gamma, line.gamma_ci))
                  for text in (f"{value:.2f}", f"[{ci[0]:.2f}, {ci[1]:.2f}]")]  # fmt: skip
        rates = [_percent(rate) for rate in (line.agrees, line.tie_rate, line.failed_rate)]
        seconds = "–" if line.seconds is None else f"{line.seconds:.0f}"
        rows.append([shown(line.rater), line.kind, f"{line.votes:,}", *slopes, *rates, seconds, _percent(line.repeats),
                     ", ".join(line.words)])  # fmt: skip
    explained = "β: 1 follows the others like an average vote, 0 a coin, below 0 reversed. γ: nats for the response shown first."
    return [*aligned(rows, left=1), explained]


def taste_report(predicted: HeldOut, votes: Votes, groups: Mapping[str, str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """The tastes of raters, or with ``groups`` of the groups that the votes of ``predicted`` are of, as (JSON, lines)."""
    of_raters = tastes(predicted)
    rows = [["rater" if groups is None else "group", "votes", "own head", "pooled head", "gain, nats a vote", "verdict"]]
    for taste in sorted(of_raters, key=lambda taste: (taste.own is None, taste.own)):
        shares = [_with_interval(*share, ".2f") for share in ((taste.own, taste.own_ci), (taste.pooled, taste.pooled_ci))]
        nats = _with_interval(taste.gain, taste.gain_ci, ".3f")
        rows.append([shown(taste.rater), f"{taste.votes:,}", *shares, nats, taste.word])
    lines = [counted(votes), *aligned(rows, left=0)]
    lines.append("shares of the votes that a head predicts which has not seen their prompts; own taste is different, not bad")
    gain = predicted.gain
    more = _with_interval(gain.difference, gain.ci, "+.3f")
    if any(taste.own is not None for taste in of_raters):
        lines.append(f"all heads together predict {more} more of the {gain.n:,} votes than the pooled head does")
    else:
        lines.append(f"no head was compared: {MIN_VOTES} decided votes of one {rows[0][0]} are the least")
    result: dict[str, Any] = {
        "said": votes.totals, "raters": [asdict(taste) for taste in of_raters], "gain": gain.difference, "gain_ci": gain.ci,
    }  # fmt: skip
    if groups is not None and (alone := without_group(votes.raters, groups)):
        lines.append(f"left out: the votes of {len(alone)} raters without a group (first {shown(alone[0])})")
        result["without_group"] = alone
    return result, lines


def _with_interval(value: float | None, ci: Sequence[float] | None, form: str) -> str:
    if value is None:
        return "–"
    return f"{value:{form}}" + (f" [{ci[0]:{form}}, {ci[1]:{form}}]" if ci else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"
