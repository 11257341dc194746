"""How far raters agree: shares of agreeing pairs, Krippendorff's alpha, Kendall's W, and Gwet's AC1 for flags.

Every figure is a function of sums over prompts, and its interval that of the jackknife that leaves out one prompt at a time
(Efron and Stein 1981; t at G − 1 degrees of freedom): what several raters say of several pairs of one prompt is not
independent. A pair that only one rater has judged does not measure agreement and is left out. Nothing here is a gate: 73 %
of agreeing pairs is among the best that is published and is an alpha of about 0.46.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from charter.errors import InputError
from charter.raters.comparisons import FAILED, Comparisons, Floats, Ints, Votes, as_comparisons

# What others measured: who with whom, the share of pairs on which they agree, where it stands.
ANCHORS = (
    ("InstructGPT, labelers with each other", "72.6 ± 1.5 %", "Ouyang et al. 2022, arXiv:2203.02155"),
    ("InstructGPT, held-out labelers", "77.3 ± 1.3 %", "Ouyang et al. 2022, arXiv:2203.02155"),
    ("summaries, labelers with researchers", "77 ± 2 %", "Stiennon et al. 2020, arXiv:2009.01325"),
    ("summaries, researchers with each other", "73 ± 4 %", "Stiennon et al. 2020, arXiv:2009.01325"),
    ("Anthropic HH, researchers with crowd", "about 63 %", "Bai et al. 2022, arXiv:2204.05862"),
    ("AlpacaEval, humans with each other", "65.7 %", "AlpacaEval README, 2023"),
    ("AlpacaEval, GPT-4 with humans", "66.6 %", "AlpacaEval README, 2023"),
    ("MT-bench, humans, and GPT-4 with humans", "over 80 %", "FastChat llm_judge README"),
)

PAIR_AGREEMENT, WITHOUT_TIES = "pair agreement", "pair agreement, ties left out"


@dataclass(frozen=True)
class Figure:
    """A measure with its 95 % interval (None if fewer than two prompts tell, or all tell the same), over ``n`` of ``unit`` in
    ``n_prompts`` prompts; the value is None if nothing was judged twice or nothing varies."""

    name: str
    value: float | None
    ci: tuple[float, float] | None
    n: int
    unit: str
    n_prompts: int


def jackknife(
    name: str, sums: Floats, statistic: Callable[[Floats], Floats], n: int, unit: str, bounds: tuple[float, float]
) -> Figure:
    """The statistic of the total of ``sums`` (G, k), one row a prompt; ``statistic`` takes totals (…, k) and may say NaN."""
    sums = sums[np.abs(sums).sum(axis=1) > 0]
    groups, total = len(sums), sums.sum(axis=0)
    value = float(statistic(total)) if groups else np.nan
    if not np.isfinite(value):
        return Figure(name, None, None, n, unit, groups)
    left_out = statistic(total - sums) if groups > 1 else np.array([np.nan])
    if not np.isfinite(left_out).all() or np.ptp(left_out) < 1e-12:  # equal prompts do not show certainty
        return Figure(name, value, None, n, unit, groups)
    error = np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.975, groups - 1) * error)
    return Figure(name, value, (max(bounds[0], value - half), min(bounds[1], value + half)), n, unit, groups)


def share(totals: Floats) -> Floats:
    """First over second of totals (…, 2)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[..., 0] / totals[..., 1])


def krippendorff(totals: Floats, values: Floats, metric: str) -> Floats:
    """Alpha of coincidence matrices (…, V·V) of V ``values``: 1 − observed over expected disagreement (Krippendorff 2018, ch.
    12). ``metric``: nominal, ordinal or interval. NaN where nothing varies."""
    v = len(values)
    coincidences = totals.reshape(*totals.shape[:-1], v, v)
    marginal = coincidences.sum(axis=-1)
    n = marginal.sum(axis=-1)
    if metric == "nominal":
        distance = 1.0 - np.eye(v)
    elif metric == "interval":
        distance = (values[:, None] - values[None, :]) ** 2
    else:
        upto = (
            np.cumsum(marginal, axis=-1) - marginal / 2
        )  # ranks up to the middle of a value, so differences count those between
        distance = (upto[..., :, None] - upto[..., None, :]) ** 2
    observed = (coincidences * distance).sum(axis=(-2, -1))
    expected = (marginal[..., :, None] * marginal[..., None, :] * distance).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (n - 1) * observed / expected)


def gwet(totals: Floats) -> Floats:
    """AC1 of two categories (Gwet 2008, Br. J. Math. Stat. Psychol. 61:29) from totals (…, 4): agreement and number of the
    units that several rated, share of yes and number of all units."""
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed, yes = totals[..., 0] / totals[..., 1], totals[..., 2] / totals[..., 3]
        chance = 2 * yes * (1 - yes)
        return np.asarray((agreed - chance) / (1 - chance))


def kendall_w(ranks: Floats) -> float:
    """Concordance W of m raters' ranks (m, n) of the same n things, corrected for ties (Kendall 1948); NaN where all are tied."""
    m, n = ranks.shape
    ranked = stats.rankdata(ranks, axis=1)
    tied = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranked))
    spread = ((ranked.sum(axis=0) - m * (n + 1) / 2) ** 2).sum()
    most = m**2 * (n**3 - n) - m * tied
    return float(12 * spread / most) if most > 0 else np.nan


@dataclass(frozen=True)
class Table:
    """Who gave which value to which unit: one vote per rater and unit, the first. U units of G prompts, V values."""

    values: Floats
    counts: Floats  # (U, V) raters that gave each value
    prompt: Ints  # (U,)

    @classmethod
    def of(cls, unit: Ints, rater: Ints, value: Floats, prompt: Ints) -> Table:
        _, first = np.unique(np.stack([unit, rater]), axis=1, return_index=True)
        units, place, number = np.unique(unit[first], return_index=True, return_inverse=True)
        values, which = np.unique(value[first], return_inverse=True)
        counts = np.bincount(number * len(values) + which, minlength=len(units) * len(values))
        return cls(values, counts.reshape(-1, len(values)).astype(float), np.unique(prompt[first][place], return_inverse=True)[1])

    def by_prompt(self, per_unit: Floats) -> Floats:
        """(G, k) sums of a (U, k) array."""
        sums = np.zeros((int(self.prompt.max()) + 1, per_unit.shape[1]))
        np.add.at(sums, self.prompt, per_unit)
        return sums

    def alpha(self, name: str, metric: str, unit: str) -> Figure:
        total = self.counts.sum(axis=1)
        several = total > 1
        v = len(self.values)
        both = (self.counts[:, :, None] * (self.counts[:, None, :] - np.eye(v))).reshape(-1, v * v)
        sums = self.by_prompt(np.where(several[:, None], both / np.maximum(total - 1, 1)[:, None], 0))
        return jackknife(name, sums, lambda totals: krippendorff(totals, self.values, metric), int(several.sum()), unit, (-1, 1))

    def agreeing(self, name: str, unit: str, keep: Any = slice(None)) -> Figure:
        """Of the pairs of raters on one unit, the share that gave the same of the values ``keep``."""
        counts = self.counts[:, keep]
        total = counts.sum(axis=1)
        same = (counts * (counts - 1)).sum(axis=1) / 2
        sums = np.stack([same, total * (total - 1) / 2], axis=1)
        return jackknife(name, self.by_prompt(sums), share, int(sums[:, 1].sum()), unit, (0, 1))

    def ac1(self, name: str, unit: str) -> Figure:
        """For values 0 and 1."""
        yes = self.counts[:, self.values == 1].sum(axis=1)
        total = self.counts.sum(axis=1)
        several = total > 1
        no = total - yes
        agreed = np.where(several, (yes * (yes - 1) + no * (no - 1)) / np.maximum(total * (total - 1), 1), 0)
        sums = self.by_prompt(np.stack([agreed, several, yes / total, np.ones(len(total))], axis=1))
        if not several.any():
            return Figure(name, None, None, 0, unit, 0)
        return jackknife(name, sums, gwet, int(several.sum()), unit, (-1, 1))


def question_units(votes: Votes, raw: Comparisons) -> Ints:
    """(N,) a number for each pair of responses to a prompt under each question: what was asked under more_harmful is another
    unit."""
    key = np.stack([votes.question[raw.ballot], raw.prompt, raw.x, raw.y])
    return np.asarray(np.unique(key, axis=1, return_inverse=True)[1])


def agreement_figures(votes: Votes) -> list[Figure]:
    """All measures of agreement of some votes, on raw answers. InputError if no two raters judged the same responses."""
    raw = as_comparisons(votes, raw=True)
    if len(votes.raters) < 2:
        raise InputError("there is one rater; agreement needs two (a table names them in a column rater)")
    figures = []
    if len(raw):
        table = Table.of(question_units(votes, raw), raw.rater, raw.outcome.astype(float), raw.prompt)
        figures += [
            table.agreeing(PAIR_AGREEMENT, "pairs of votes"),
            table.agreeing(WITHOUT_TIES, "pairs of votes", table.values != 0),
            table.alpha("alpha of the pair outcome", "nominal", "pairs of responses"),
        ]
    figures += [_concordance(votes)] if (votes.size > 2).any() else []
    graded = votes.strength != 0
    if graded.any():
        grades = np.isin(votes.rater, votes.rater[graded])  # of such a rater a tie is the middle of the scale
        pairs = graded[raw.ballot] | ((raw.outcome == 0) & grades[raw.ballot] & (votes.size[raw.ballot] == 2))
        unit = question_units(votes, raw)[pairs]
        table = Table.of(unit, raw.rater[pairs], votes.strength[raw.ballot[pairs]].astype(float), raw.prompt[pairs])
        figures.append(table.alpha("alpha of the strength", "ordinal", "pairs of responses"))
    rater, prompt = votes.rater[votes.ranked_in], votes.prompt[votes.ranked_in]
    key = np.stack([votes.question[votes.ranked_in], prompt, votes.ranked])
    unit = np.unique(key, axis=1, return_inverse=True)[1]
    marks = {"F": votes.rank == FAILED, **{f"flag {flag}": marked for flag, marked in votes.flags.items()}}
    for name, marked in marks.items():
        if marked.any():
            table = Table.of(unit, rater, marked.astype(float), prompt)
            figures += [table.ac1(f"AC1 of {name}", "responses"), table.alpha(f"alpha of {name}", "nominal", "responses")]
    if not any(figure.n for figure in figures):
        raise InputError("no two raters judged the same responses; agreement needs some overlap")
    return figures


def _concordance(votes: Votes) -> Figure:
    """Mean W over the sets of at least three responses that several raters ranked in full; an F is a shared last place."""
    height = np.where(votes.rank == FAILED, np.inf, votes.rank)
    order = np.lexsort((votes.ranked, votes.ranked_in))
    inside, response, rank = votes.ranked_in[order], votes.ranked[order], height[order]
    start, size = np.unique(inside, return_index=True, return_counts=True)[1:]
    sets: dict[tuple[int, ...], dict[int, Floats]] = {}
    for begin, n in zip(start.tolist(), size.tolist(), strict=True):
        ballot = int(inside[begin])
        if n > 2 and n == votes.size[ballot]:
            key = (int(votes.question[ballot]), int(votes.prompt[ballot]), *response[begin : begin + n].tolist())
            sets.setdefault(key, {}).setdefault(int(votes.rater[ballot]), rank[begin : begin + n])
    scores = [(key[1], kendall_w(np.array(list(by_rater.values())))) for key, by_rater in sets.items() if len(by_rater) > 1]
    scores = [(prompt, w) for prompt, w in scores if np.isfinite(w)]
    sums = np.zeros((len(votes.prompts), 2))
    for prompt, w in scores:
        sums[prompt] += w, 1
    return jackknife("Kendall's W, mean over sets", sums, share, len(scores), "sets", (0, 1))
