"""Planted raters are found, and only they; a minority with a taste of its own is different and not bad."""

import numpy as np
import pytest

from charter.errors import InputError
from charter.raters.comparisons import Comparisons, as_comparisons, votes_of
from charter.raters.lines import rater_lines
from charter.raters.personal import NONE, OWN, SHARED, held_out, tastes
from charter.raters.reliability import fit_raters
from charter.records import Judgment

RANDOM, REVERSED, FIRST = {"r00", "r01", "r02"}, {"r03", "r04"}, {"r05", "r06"}


def campaign(seed: int, *, raters: int = 20, prompts: int = 500, k: int = 4, each: int = 4) -> list[Judgment]:
    """Rankings of k responses to each prompt by some of the raters, each shown in an order of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt in range(prompts):
        strengths = 2 * rng.normal(size=k)
        for number in rng.choice(raters, each, replace=False):
            rater = f"r{number:02}"
            order = rng.permutation(k)
            follows = 0 if rater in RANDOM else -1 if rater in REVERSED else 1
            seen = follows * strengths + rng.gumbel(size=k)
            if rater in FIRST:
                seen[order] += np.linspace(1.6, -1.6, k)
            ranks = (-seen).argsort().argsort() + 1
            names = [f"{prompt}-{i}" for i in range(k)]
            found.append(
                Judgment(
                    id=f"{prompt}-{rater}",
                    set_id=f"s{prompt}",
                    prompt_id=f"p{prompt}",
                    rater_id=rater,
                    rater_kind="judge" if rater == "r19" else "human",
                    order=tuple(names[i] for i in order),
                    ranks={name: int(rank) for name, rank in zip(names, ranks, strict=True)},
                    timings={"active_ms": 20_000.0 + 1000 * int(number)},
                )
            )
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_raters_are_found_and_only_they(seed):
    lines = {line.rater: line for line in rater_lines(votes_of(campaign(seed)))}
    assert {rater for rater, line in lines.items() if "random" in line.words} == RANDOM
    assert {rater for rater, line in lines.items() if "reversed" in line.words} == REVERSED
    assert {rater for rater, line in lines.items() if "likes the first" in line.words} == FIRST
    assert sum(bool(line.words) for line in lines.values()) == 7
    assert lines["r19"].kind == "judge"
    assert lines["r07"].seconds == 27
    assert all(lines[rater].agrees < 0.4 for rater in REVERSED)


def test_one_rater_s_votes_do_not_explain_themselves():
    """Responses that hardly differ, three votes each: fitted along with the responses one rater in twenty came out at β = −11."""
    rng = np.random.default_rng(0)
    prompts, k = 600, 4
    strengths = 0.5 * rng.normal(size=(prompts, k))
    columns = []
    for number in range(3):
        who = rng.integers(0, 20, prompts)
        seen = strengths + rng.gumbel(size=(prompts, k))
        for i in range(k):
            for j in range(i + 1, k):
                every = np.arange(prompts)
                columns.append(
                    (every * k + i, every * k + j, np.where(seen[:, i] > seen[:, j], 1, -1), who, every, every + number * prompts)
                )
    x, y, outcome, rater, prompt, ballot = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    found = fit_raters(Comparisons(tuple(map(str, range(prompts * k))), tuple(map(str, range(20))), x, y, outcome,
                                   np.zeros(len(x), dtype=np.int64), rater, prompt, ballot, np.ones(len(x))))  # fmt: skip
    assert np.abs(found.beta - 1).max() < 1.5
    assert found.sd == pytest.approx(0.5, abs=0.1)
    away = (found.beta - 1) / found.beta_se
    assert np.abs(away).max() < 3


def test_a_judge_s_liking_for_a_position_is_read_from_its_single_orders():
    """The judge's swapped verdicts agree with everybody; asked once it leans to the first by half of the differences."""
    rng = np.random.default_rng(0)
    judgments = []
    for prompt in range(300):
        quality = float(rng.normal() * 1.5)
        for who in ("ann", "bob", "judge"):
            margin = quality + float(rng.logistic())
            ids = (f"{prompt}-a", f"{prompt}-b")
            ranks = {ids[0]: 1 if margin > 0 else 2, ids[1]: 2 if margin > 0 else 1}
            fields = (
                {"rater_kind": "judge", "margin": margin, "margins_by_order": (margin + 1.5, margin - 1.5)}
                if who == "judge"
                else {}
            )
            judgments.append(
                Judgment(
                    **{
                        "id": f"{prompt}-{who}",
                        "set_id": f"s{prompt}",
                        "prompt_id": f"p{prompt}",
                        "rater_id": who,
                        "rater_kind": "human",
                        "order": ids if rng.random() < 0.5 else ids[::-1],
                        "ranks": ranks,
                    }
                    | (fields | {"order": ids} if fields else {})
                )
            )
    lines = {line.rater: line for line in rater_lines(votes_of(judgments))}
    assert lines["judge"].words == ("likes the first",)
    assert lines["ann"].words == lines["bob"].words == ()


def test_repeats_ties_and_failures_are_counted():
    ranks = {"a": 1, "b": 1, "c": "F"}
    judgments = [
        Judgment(id=str(i), set_id=f"s{i}", prompt_id="p", rater_id=who, rater_kind="human", order=("a", "b", "c"), ranks=given)
        for i, (who, given) in enumerate([("ann", ranks), ("ann", ranks | {"b": 2}), ("bob", {"a": 1, "b": 2, "c": 3})])
    ]
    ann, bob = sorted(rater_lines(votes_of(judgments)), key=lambda line: line.rater)
    assert (ann.votes, ann.tie_rate, ann.failed_rate) == (2, pytest.approx(1 / 6), pytest.approx(1 / 3))
    assert (ann.repeats, ann.n_repeats) == (pytest.approx(2 / 3), 3)
    assert (bob.repeats, bob.failed_rate) == (None, 0)


def test_one_reversed_rater_of_three_is_found():
    """Two agree on every prompt and the third contradicts both: two votes agree less often than chance. At a spread near 0 every
    slope was 1, with an interval of a few hundredths."""
    judgments = [
        Judgment(id=f"{i}-{rater}", set_id=f"s{i}", prompt_id=f"p{i}", rater_id=rater, rater_kind="human",
                 order=(f"{i}a", f"{i}b")[:: 1 if (i + len(rater)) % 2 else -1],
                 ranks={f"{i}a": 1 + (rater == "cem"), f"{i}b": 2 - (rater == "cem")})
        for i in range(40) for rater in ("ann", "bob", "cem")
    ]  # fmt: skip
    lines = {line.rater: line for line in rater_lines(votes_of(judgments))}
    assert lines["cem"].words == ("reversed",)
    assert lines["cem"].beta < 0 < min(lines["ann"].beta_ci[0], lines["bob"].beta_ci[0])


def test_coins_are_not_certainly_average():
    """The votes of coins know next to nothing of a slope; the intervals were a few hundredths wide around 1."""
    rng = np.random.default_rng(0)
    judgments = [
        Judgment(id=f"{i}-{rater}", set_id=f"s{i}", prompt_id=f"p{i}", rater_id=rater, rater_kind="human",
                 order=(f"{i}a", f"{i}b"), ranks={f"{i}a": 1 + (first := int(rng.random() < 0.5)), f"{i}b": 2 - first})
        for i in range(40) for rater in ("ann", "bob", "cem", "dan")
    ]  # fmt: skip
    assert all(line.beta_ci[1] - line.beta_ci[0] > 0.5 for line in rater_lines(votes_of(judgments)))


def test_without_overlap_nothing_is_said_of_a_rater():
    judgments = [
        Judgment(
            id=f"{i}",
            set_id=f"s{i}",
            prompt_id=f"p{i}",
            rater_id="ab"[i % 2],
            rater_kind="human",
            order=(f"{i}x", f"{i}y"),
            ranks={f"{i}x": 1, f"{i}y": 2},
        )
        for i in range(40)
    ]
    for line in rater_lines(votes_of(judgments)):
        assert line.words == ("no overlap with others",)
    judgments[1] = judgments[1].model_copy(update={"prompt_id": "p0", "order": ("0x", "0y"), "ranks": {"0x": 2, "0y": 1}})
    for line in rater_lines(votes_of(judgments)):  # each agrees with the other on no pair of one
        assert (line.agrees, line.words) == (0, ("overlaps with others on one prompt only",))
    for line in rater_lines(votes_of(judgments[2:])):
        assert line.beta == pytest.approx(1, abs=1e-6)


# -- taste ---------------------------------------------------------------------------------------------------------------


def taste_votes(seed: int, votes: int = 200, d: int = 16, prompts: int = 500, k: int = 4) -> tuple[Comparisons, np.ndarray]:
    """20 raters: r00–r02 at random, r03–r05 by a direction of their own, the others by a shared one."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(prompts * k, d))
    shared, own = rng.normal(size=(2, d))
    own -= own @ shared / (shared @ shared) * shared
    shared, own = 2 * shared / np.linalg.norm(shared), 2 * own / np.linalg.norm(own)
    rater = np.repeat(np.arange(20), votes)
    prompt = rng.integers(0, prompts, len(rater))
    a = rng.integers(0, k, len(rater))
    b = (a + rng.integers(1, k, len(rater))) % k
    x, y = prompt * k + np.minimum(a, b), prompt * k + np.maximum(a, b)
    direction = np.where((rater < 3)[:, None], 0, np.where((rater < 6)[:, None], own, shared))
    p = 1 / (1 + np.exp(-((features[x] - features[y]) * direction).sum(axis=1)))
    outcome = np.where(rng.random(len(rater)) < p, 1, -1)
    every = np.arange(len(rater))
    return Comparisons(
        tuple(map(str, range(prompts * k))),
        tuple(f"r{i:02}" for i in range(20)),
        x,
        y,
        outcome,
        np.zeros(len(rater), dtype=np.int64),
        rater,
        prompt,
        every,
        np.ones(len(rater)),
    ), features


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_told_from_taste(seed):
    found = tastes(held_out(*taste_votes(seed)))
    assert [one.word for one in found] == [NONE] * 3 + [OWN] * 3 + [SHARED] * 14
    for one in found[3:6]:
        assert one.gain_ci[0] > 0  # nats a vote, paired, over the pooled head at the rater's scale
        assert one.own_ci[0] > one.pooled
    assert all(one.own == pytest.approx(0.5, abs=0.12) for one in found[:3])


def test_few_votes_make_nobody_bad():
    words = [one.word for one in tastes(held_out(*taste_votes(3, votes=40)))]
    assert NONE not in words[3:]


def test_taste_does_not_depend_on_how_features_are_turned_or_scaled():
    votes, features = taste_votes(0, votes=60)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    first, second = tastes(held_out(votes, features)), tastes(held_out(votes, 7 * features @ turn + 3))
    assert [one.own for one in first] == pytest.approx([one.own for one in second], abs=0.02)


def test_features_that_are_not_finite_are_refused():
    votes, features = taste_votes(0, votes=20)
    features[3, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        held_out(votes, features)
    with pytest.raises(ValueError, match="rows of features"):
        held_out(votes, features[:5])
    with pytest.raises(InputError, match="every vote is a tie"):
        held_out(
            as_comparisons(
                votes_of(
                    [
                        Judgment(
                            id="1",
                            set_id="s",
                            prompt_id="p",
                            rater_id="a",
                            rater_kind="human",
                            order=("x", "y"),
                            ranks={"x": 1, "y": 1},
                        )
                    ]
                )
            ),
            np.zeros((2, 3)),
        )
