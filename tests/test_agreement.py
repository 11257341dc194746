"""Measures of agreement against published examples and other libraries; intervals that know of prompts."""

import evalica
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from charter.errors import InputError
from charter.raters.agreement import ANCHORS, Table, agreement_figures, gwet, jackknife, kendall_w, krippendorff, share
from charter.raters.comparisons import votes_of
from charter.records import Judgment

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = """1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 ."""


def table_of(text: str) -> tuple[Table, pd.DataFrame]:
    grid = [[np.nan if cell == "." else float(cell) for cell in line.split()] for line in text.splitlines()]
    rater, unit = np.nonzero(~np.isnan(np.array(grid)))
    return Table.of(unit, rater, np.array(grid)[rater, unit], unit), pd.DataFrame(grid)


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(metric, alpha):
    table, frame = table_of(OBSERVERS)
    found = table.alpha("alpha", metric, "units")
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert found.value == pytest.approx(evalica.alpha(frame, metric).alpha, abs=1e-9)
    assert found.n == 11  # the twelfth unit has one observer
    assert found.ci[0] < found.value < found.ci[1]


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval"])
def test_alpha_is_evalica_s_on_random_votes(metric):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 200)
    grid = np.clip(truth + rng.integers(-1, 2, (6, 200)), 0, 4).astype(float)
    grid[rng.random(grid.shape) < 0.5] = np.nan
    rater, unit = np.nonzero(~np.isnan(grid))
    mine = Table.of(unit, rater, grid[rater, unit], unit).alpha("alpha", metric, "units").value
    assert mine == pytest.approx(evalica.alpha(pd.DataFrame(grid), metric).alpha, abs=1e-9)


def test_alpha_of_balanced_pairs_is_twice_the_agreement_less_one():
    """73 % of agreeing pairs are an alpha of 0.46: no reason to throw them away."""
    totals = np.array([730.0, 270.0, 270.0, 730.0])
    assert krippendorff(totals, np.array([-1.0, 1.0]), "nominal") == pytest.approx(0.46, abs=1e-3)


def test_kendall_w_by_hand():
    """Three raters, four things, column sums 4, 6, 8, 12: S = 35, W = 12·35 / (9·60) = 0.778; ties are taken out of the most
    that S can be."""
    assert kendall_w(np.array([[1, 2, 3, 4], [2, 1, 3, 4], [1, 3, 2, 4]])) == pytest.approx(12 * 35 / 540)
    assert kendall_w(np.array([[1, 2, 3], [1, 2, 3]])) == 1
    assert kendall_w(np.array([[1, 1, 2], [1, 1, 2]])) == 1
    assert np.isnan(kendall_w(np.array([[1, 1, 1], [1, 1, 1]])))


def test_two_raters_kendall_w_is_the_mean_rank_correlation():
    first, second = np.array([1, 2, 3, 4, 5]), np.array([2, 1, 5, 3, 4])
    assert kendall_w(np.stack([first, second])) == pytest.approx((1 + stats.spearmanr(first, second)[0]) / 2)


def test_ac1_by_hand():
    """Two raters, 100 responses: both F on 1, neither on 90, one of them on 9. π = .055, chance 2 π (1 − π) = .10395, AC1 =
    .89957."""
    unit = np.repeat(np.arange(100), 2)
    value = np.zeros(200)
    value[:2] = 1
    value[2:20:2] = 1
    found = Table.of(unit, np.tile([0, 1], 100), value, unit).ac1("F", "responses")
    assert found.value == pytest.approx((0.91 - 0.10395) / (1 - 0.10395))
    assert gwet(np.array([91.0, 100.0, 5.5, 100.0])) == pytest.approx(found.value)


def test_the_jackknife_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(1).normal(size=12)
    found = jackknife("mean", np.stack([values, np.ones(12)], axis=1), share, 12, "values", (-9, 9))
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert found.ci == pytest.approx((values.mean() - half, values.mean() + half))


def vote(rater: str, prompt: str, ranks: dict, **fields) -> Judgment:
    order = fields.pop("order", tuple(ranks))
    return Judgment(
        id=f"{rater}-{prompt}-{len(fields)}-{fields.get('set_id', '')}",
        set_id=fields.pop("set_id", prompt),
        prompt_id=prompt,
        rater_id=rater,
        rater_kind="human",
        order=order,
        ranks=ranks,
        **fields,
    )


def figures(judgments) -> dict:
    return {figure.name: figure for figure in agreement_figures(votes_of(judgments))}


def test_shares_with_and_without_ties():
    """On three prompts ann and bob agree, differ, and one of them ties."""
    found = figures([
        vote("ann", "p", {"a": 1, "b": 2}), vote("bob", "p", {"a": 1, "b": 2}),
        vote("ann", "q", {"c": 1, "d": 2}), vote("bob", "q", {"c": 2, "d": 1}),
        vote("ann", "r", {"e": 1, "f": 2}), vote("bob", "r", {"e": 1, "f": 1}),
    ])  # fmt: skip
    assert (found["pair agreement"].value, found["pair agreement"].n) == (pytest.approx(1 / 3), 3)
    assert (found["pair agreement, ties left out"].value, found["pair agreement, ties left out"].n) == (0.5, 2)


def test_a_side_of_the_screen_is_no_agreement():
    """Both always take the left one, and see it on different sides: they never agree."""
    judgments = [vote(who, f"p{i}", {first: 1, second: 2}) for i in range(20)
                 for who, first, second in (("ann", "a", "b"), ("bob", "b", "a"))]  # fmt: skip
    found = figures(judgments)
    assert found["pair agreement"].value == 0
    assert found["alpha of the pair outcome"].value < 0


def test_the_raw_answer_counts_and_questions_are_not_mixed():
    harmful = [vote(who, f"p{i}", {f"a{i}": 1, f"b{i}": 2}, direction="more_harmful") for i in range(3) for who in ("ann", "bob")]
    assert figures(harmful)["pair agreement"].value == 1
    mixed = [harmful[0], vote("bob", "p0", {"a0": 1, "b0": 2})]
    with pytest.raises(InputError, match="no two raters"):
        agreement_figures(votes_of(mixed))


def test_a_vote_of_one_rater_says_nothing():
    found = figures([vote("ann", "p", {"a": 1, "b": 2}), vote("bob", "p", {"a": 1, "b": 2}), vote("ann", "q", {"c": 1, "d": 2})])
    assert found["pair agreement"].n == 1
    assert found["pair agreement"].ci is None


def test_concordance_of_whole_rankings_only():
    ranks = {"a": 1, "b": 2, "c": "F"}
    found = figures(
        [vote("ann", "p", ranks), vote("bob", "p", ranks | {"c": 3}), vote("cy", "p", {"a": 2, "b": 1}, order=("a", "b", "c"))]
    )
    w = found["Kendall's W, mean over sets"]
    assert (w.value, w.n) == (1, 1)


def test_strength_and_flags_have_their_own_figures():
    judgments = []
    for i in range(12):
        for who, strength, flags in (("ann", 3, ["spam"]), ("bob", 2 + (i % 2), ["spam"] if i else [])):
            strength = strength if i % 3 else -strength
            ranks = {f"a{i}": 1 if strength > 0 else 2, f"b{i}": "F" if i == 1 else 2 if strength > 0 else 1}
            judgments.append(vote(who, f"p{i}", ranks, strength=strength, flags={f"a{i}": flags}))
    found = figures(judgments)
    assert 0.5 < found["alpha of the strength"].value < 1
    assert found["AC1 of F"].value == 1
    assert found["AC1 of flag spam"].value == pytest.approx(0.92, abs=0.03)


def test_a_tie_of_a_rater_who_grades_is_the_middle_of_the_strength():
    """Half of the pairs: both say the same notch for a or for b; the other half: one rater sees no difference."""
    judgments = []
    for i in range(20):
        for who in ("ann", "bob"):
            tie = i % 2 == 1 and who == "bob"
            sign = 1 if i % 4 < 2 else -1
            ranks = {f"a{i}": 1 if tie or sign > 0 else 2, f"b{i}": 1 if tie or sign < 0 else 2}
            judgments.append(vote(who, f"p{i}", ranks, strength=None if tie else 2 * sign))
    alpha = figures(judgments)["alpha of the strength"]
    units = [[2 * (1 if i % 4 < 2 else -1), 0 if i % 2 == 1 else 2 * (1 if i % 4 < 2 else -1)] for i in range(20)]
    expected, _ = table_of("\n".join(" ".join(str(unit[k]) for unit in units) for k in (0, 1)))
    assert (alpha.n, alpha.value) == (20, pytest.approx(expected.alpha("", "ordinal", "").value))
    assert alpha.value < 0.9


def test_prompts_that_all_tell_the_same_give_no_interval():
    """Six of six pairs agree: an interval from 1 to 1 would say that all others do, and leaving one out shows no spread."""
    same = figures([vote(who, f"p{i}", {f"a{i}": 1, f"b{i}": 2}) for i in range(6) for who in ("ann", "bob")])
    assert (same["pair agreement"].value, same["pair agreement"].ci, same["pair agreement"].n) == (1, None, 6)


def test_pairs_of_one_prompt_widen_the_interval():
    """Ten prompts with many pairs each, on which raters agree or not by the prompt: ten clusters, not two hundred pairs."""
    rng = np.random.default_rng(0)
    clustered, spread = [], []
    for prompt in range(10):
        agree = prompt % 2 == 0
        for pair in range(20):
            for name, found in ((f"p{prompt}", clustered), (f"p{prompt}-{pair}", spread)):
                ids = (f"{prompt}-{pair}-a", f"{prompt}-{pair}-b")
                swap = rng.random() < 0.5
                for who in ("ann", "bob"):
                    first = ids[::-1] if swap ^ (who == "bob" and not agree) else ids
                    found.append(vote(who, name, {first[0]: 1, first[1]: 2}, set_id=ids[0]))
    wide, narrow = (figures(found)["pair agreement"].ci for found in (clustered, spread))
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_the_anchors_name_their_sources():
    assert all(source for _, _, source in ANCHORS)
    assert ("InstructGPT, labelers with each other", "72.6 ± 1.5 %", "Ouyang et al. 2022, arXiv:2203.02155") in ANCHORS
