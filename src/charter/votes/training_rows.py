"""Datasets as views of judgments: preference pairs, single responses that are good or bad, and rankings grouped by prompt.

Nothing here is stored truth. What is left out is counted by reason, and a file that asks for less harm in one place and for
more in another is refused until the caller chooses what to do with it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from charter.errors import InputError
from charter.reading.pairs import IDENTICAL
from charter.records import Judgment, Pair, Prompt, RaterKind, clean_text
from charter.votes.evidence import Evidence
from charter.votes.judgments import deciding, why_forgotten
from charter.votes.rankings import MARGINS, WEAKEST, contradicts_itself, labels, notches, oriented, soft_label, ties, wins
from charter.votes.winners import NO_VERDICT

SUPERSEDED = "superseded by a later judgment"
REPEATED = "the same vote in another export"
GONE = "a vote that was forgotten"
WEAK = "preferred by the weakest notch only"
CONTRADICTION = "strength and ranks name different responses"
HARMFUL = "asked for the more harmful response"
TIED = "a tie"
NO_PAIR = "no pair: every answer is an F, or there is one answer alone"
TWO_LABELS = "a text that one vote calls good and bad"
NO_GROUP = "a vote of a rater without a group"
NOT_ALL_GROUPS = "a pair that not every group voted on"
NOT_SHARED = "a pair on which groups differ, or one is split"
SPLIT = "raters split evenly"
OPPOSED = "an edit under more_harmful"
NO_ORDER = "an F under more_harmful, with nothing to compare beside it"
NO_ATTEMPT = "no attempt with a rating"
EDITED = "an edit, not a ranking"


@dataclass(frozen=True)
class Selection:
    """Which judgments go into a dataset, and how they become labels.

    ``rater_kinds``: these only, all when empty. ``without_raters``: not these. ``keep_weakest``: pairs preferred by the weakest
    notch too. ``more_harmful``: judgments under that direction are turned round, or left out; ``refuse`` turns them round where
    all are of that kind and is an error where some are. ``soft``: ``judgment`` gives one row per judgment, ``share`` one per
    pair of a set, weighted by the share of raters, ``groups`` those that each group of raters prefers, weighted by the lowest
    share of a group, ``ratings`` the same as ``share`` weighted by P(chosen) of a ratings file.
    ``calibration``: nats of a judge's margin per unit of the logistic function. ``reasons``: each row has the
    words of its rater and the principles that they named.
    """

    rater_kinds: tuple[RaterKind, ...] = ()
    without_raters: tuple[str, ...] = ()
    keep_weakest: bool = False
    more_harmful: Literal["refuse", "flip", "leave-out"] = "refuse"
    soft: Literal["judgment", "share", "groups", "ratings"] = "judgment"
    calibration: float = 1.0
    reasons: bool = False


@dataclass
class Tally:
    """What went in and what did not."""

    judgments: int = 0
    flipped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    raters: Counter[tuple[str, str]] = field(default_factory=Counter)
    instructions: set[str] = field(default_factory=set)

    def summary(self) -> dict[str, Any]:
        """As the manifest of an export keeps it."""
        return {
            "judgments": self.judgments,
            "flipped": self.flipped,
            "left_out": dict(sorted(self.left_out.items())),
            "raters": [{"id": name, "kind": kind, "judgments": n} for (name, kind), n in sorted(self.raters.items())],
            "instructions": sorted(self.instructions),
        }


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Where a row comes from. ``reason``: the words of the rater; ``decided``: ids of the principles that they named, with
    commas."""

    principle: str = ""
    judgment_id: str = ""
    rater_id: str = ""
    rater_kind: str = ""
    reason: str = ""
    decided: str = ""


@dataclass(frozen=True)
class PairRow(_Origin):
    """A preference pair and where it comes from. ``strength``: 1 to 4 notches for chosen, 0 without a strength. ``responses``:
    ids of chosen and rejected, "" for a text that is not a response."""

    prompt: Prompt
    chosen: str
    rejected: str
    group_id: str
    weight: float = 1.0
    margin: float = 0.0
    strength: int = 0
    responses: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class LabelRow(_Origin):
    """A single response that is good or bad, and where that comes from."""

    prompt: Prompt
    completion: str
    label: bool
    group_id: str


@dataclass(frozen=True)
class GroupRow:
    """All rankings of the responses to one prompt. ``responses``: (id, model, text)."""

    prompt: Prompt
    responses: tuple[tuple[str, str, str], ...]
    rankings: tuple[Judgment, ...]


@dataclass(frozen=True)
class AttemptRow:
    """A red-team dialogue with what is known of it: ``flags`` are its tags and its numbers as ``name=value``."""

    prompt: Prompt
    text: str
    model: str
    rater_id: str
    task: str
    flags: tuple[str, ...]


def _by_whom(evidence: Evidence, selection: Selection, tally: Tally, among: set[str] | None = None) -> Iterator[Judgment]:
    """The current judgments of the selected raters, on sets for work, in the order of the datasets."""
    n = len(evidence.judgments) if among is None else len(among)
    repeats = evidence.judgments.repeats(among)
    current = 0
    for judgment in evidence.judgments.in_order(among):
        current += 1
        if why_forgotten(judgment):
            tally.left_out[GONE] += 1
        elif judgment.id in repeats:
            tally.left_out[REPEATED] += 1
        elif role := evidence.roles.get(judgment.set_id):
            tally.left_out[f"a set for {role}"] += 1
        elif selection.rater_kinds and judgment.rater_kind not in selection.rater_kinds:
            tally.left_out[f"rater kind {judgment.rater_kind}"] += 1
        elif judgment.rater_id in selection.without_raters:
            tally.left_out[f"rater {judgment.rater_id}"] += 1
        else:
            yield judgment
    if n > current:
        tally.left_out[SUPERSEDED] += n - current


def _count(judgment: Judgment, tally: Tally) -> None:
    tally.judgments += 1
    tally.raters[judgment.rater_id, judgment.rater_kind] += 1
    if judgment.instructions_hash:
        tally.instructions.add(judgment.instructions_hash)


def selected(evidence: Evidence, selection: Selection, tally: Tally, among: set[str] | None = None) -> Iterator[Judgment]:
    """The judgments that a dataset is made of, in its order, each under the direction ``better``.

    InputError where both signs are there and ``selection`` does not say what to do.
    """
    signs: dict[bool, str] = {}
    for judgment in _by_whom(evidence, selection, tally, among):
        harmful = judgment.direction == "more_harmful"
        if harmful and selection.more_harmful == "leave-out":
            tally.left_out[HARMFUL] += 1
        elif not judgment.has_verdict and not judgment.edit:
            tally.left_out[NO_VERDICT] += 1
        else:
            first = signs.setdefault(harmful, judgment.id)
            if len(signs) == 2 and selection.more_harmful == "refuse":
                raise InputError(f"judgment {first} asks for the {'more harmful' if harmful else 'better'} response and "
                                 f"{signs[not harmful]} for the {'better' if harmful else 'more harmful'} one; say "
                                 "--more-harmful flip to turn those round or --more-harmful leave-out",
                                 file=evidence.judgments.path, field="direction")  # fmt: skip
            if contradicts_itself(judgment):
                tally.left_out[CONTRADICTION] += 1
                continue
            if harmful and judgment.edit:
                tally.left_out[OPPOSED] += 1
            turned = oriented(judgment)
            if judgment.has_verdict and not turned.has_verdict:
                tally.left_out[NO_ORDER] += 1
                continue
            _count(judgment, tally)
            tally.flipped += harmful
            yield turned


def pair_rows(evidence: Evidence, selection: Selection, tally: Tally, among: set[str] | None = None) -> Iterator[PairRow]:
    """A row for each pair that a judgment decides, chosen first, and for each edit (the rewrite against the original)."""
    for judgment in selected(evidence, selection, tally, among):
        yield from _edits(evidence, judgment, tally)
        decided = _decided(judgment, selection, tally)
        tally.left_out[TIED] += len(ties(judgment))
        for chosen, rejected in decided:
            row = PairRow(
                prompt=evidence.prompt(judgment),
                chosen=evidence.text(judgment, chosen),
                rejected=evidence.text(judgment, rejected),
                group_id=judgment.set_id,
                weight=soft_label(judgment.margin if len(judgment.order) == 2 else None, selection.calibration),
                margin=MARGINS.get(notches(judgment), 0.0),
                strength=notches(judgment),
                responses=(chosen, rejected),
                **_provenance(judgment),
            )
            yield from _unless_identical(row, tally)


def aggregated_rows(
    evidence: Evidence,
    selection: Selection,
    tally: Tally,
    among: set[str] | None = None,
    scores: Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Iterator[PairRow]:
    """One row for each pair of responses of a set that its raters decide together; edits as they are.

    ``weight`` is the share of raters for chosen: a tie counts half for each, and several votes of one rater as their mean. With
    ``scores`` (nats, by response id) it is sigma of their difference. With ``groups`` (rater to group) only pairs stay that
    all groups decide in the same way, weighted by the lowest share of a group. ``margin`` is the mean of the raters' margins
    towards chosen, those of the other side negative and those without a strength left out; it is never below 0. ``principle`` is
    the one under which all of them judged the pair, "" where they are several. A pair with an even share is left out.
    """
    for _, votes in groupby(
        selected(evidence, selection, tally, among), key=lambda judgment: (judgment.prompt_id, judgment.set_id)
    ):
        shares: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}  # pair -> rater -> votes for the first of the two
        margins: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        principles: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for judgment in votes:
            yield from _edits(evidence, judgment, tally)
            decided = [(pair, 1.0) for pair in _decided(judgment, selection, tally)]
            for (winner, loser), share in [*decided, *((pair, 0.5) for pair in ties(judgment))]:
                key = (min(winner, loser), max(winner, loser))
                sign = 1 if key[0] == winner else -1
                rater = shares.setdefault(key, {}).setdefault((judgment.rater_id, judgment.rater_kind), [])
                rater.append(share if sign == 1 else 1 - share)
                principles[key].add(judgment.principle or "")
                if share != 0.5 and notches(judgment):
                    margins[key].append(sign * MARGINS[notches(judgment)])
        for key, by_rater in shares.items():
            p = sum(sum(theirs) / len(theirs) for theirs in by_rater.values()) / len(by_rater)
            if groups is not None:
                p = _shared(by_rater, groups, tally)
                if math.isnan(p):
                    continue
            if scores is not None:
                for response in key:
                    if response not in scores:
                        raise InputError(f"no rating of response {response!r}; rate the responses of these judgments")
                p = _sigma(scores[key[0]] - scores[key[1]])
            if p == 0.5:
                tally.left_out[SPLIT] += 1
                continue
            chosen, rejected = key if p > 0.5 else key[::-1]
            towards = sum(margins[key]) / len(margins[key]) if margins[key] else 0.0
            row = PairRow(
                prompt=evidence.prompt(judgment),
                chosen=evidence.text(judgment, chosen),
                rejected=evidence.text(judgment, rejected),
                group_id=judgment.set_id,
                weight=round(max(p, 1 - p), 12),
                margin=max(0.0, towards if p > 0.5 else -towards),
                principle=principles[key].pop() if len(principles[key]) == 1 else "",
            )
            yield from _unless_identical(row, tally)


def _shared(by_rater: Mapping[tuple[str, str], list[float]], groups: Mapping[str, str], tally: Tally) -> float:
    """The share for the first of two responses in the group where it is nearest to an even one, where each group prefers the same
    response; NaN, and counted, where it does not or a group has no vote."""
    shares: dict[str, list[float]] = {}
    for (rater, _), theirs in by_rater.items():
        if rater in groups:
            shares.setdefault(groups[rater], []).append(sum(theirs) / len(theirs))
        else:
            tally.left_out[NO_GROUP] += len(theirs)
    means = [sum(group) / len(group) for group in shares.values()]
    if shares.keys() != set(groups.values()):
        tally.left_out[NOT_ALL_GROUPS] += 1
    elif min(means) > 0.5 or max(means) < 0.5:
        return min(means, key=lambda mean: abs(mean - 0.5))
    else:
        tally.left_out[NOT_SHARED] += 1
    return math.nan


def label_rows(evidence: Evidence, selection: Selection, tally: Tally, among: set[str] | None = None) -> Iterator[LabelRow]:
    """A row for each response that a judgment calls good or bad on its own (:func:`charter.votes.rankings.labels`)."""
    for judgment in selected(evidence, selection, tally, among):
        weak = _too_weak(judgment, selection)
        tally.left_out[WEAK] += weak
        alone = [(key, good) for key, good in labels(judgment) if key not in judgment.edit and not weak]
        texts = [(evidence.text(judgment, response), good) for response, good in alone]
        for row in _edits(evidence, judgment, tally):
            texts += [(row.chosen, True), (row.rejected, False)]
        tally.left_out[TIED] += not texts and not weak
        both = {text for text, good in texts if good} & {text for text, good in texts if not good}
        tally.left_out[TWO_LABELS] += sum(text in both for text, _ in texts)
        for text, good in ((text, good) for text, good in texts if text not in both):
            yield LabelRow(evidence.prompt(judgment), text, good, judgment.set_id, **_provenance(judgment))


def group_rows(evidence: Evidence, selection: Selection, tally: Tally, among: set[str] | None = None) -> Iterator[GroupRow]:
    """A row for each prompt, with all its judged responses and the rankings of each rater."""

    def ranked() -> Iterator[Judgment]:
        for judgment in selected(evidence, selection, tally, among):
            tally.left_out[EDITED] += len(judgment.edit)
            if judgment.has_verdict:
                yield judgment

    for _, judgments in groupby(ranked(), key=lambda judgment: judgment.prompt_id):
        rankings = tuple(judgments)
        keys = dict.fromkeys(response for judgment in rankings for response in judgment.order)
        responses = [evidence.response(rankings[0], key) for key in keys]
        yield GroupRow(evidence.prompt(rankings[0]), tuple((r.id, r.model, r.text) for r in responses), rankings)


def attempt_rows(evidence: Evidence, selection: Selection, tally: Tally, among: set[str] | None = None) -> Iterator[AttemptRow]:
    """A row for each judgment of a single dialogue that has a rating among its flags, as red-team attempts have."""
    for judgment in _by_whom(evidence, selection, tally, among):
        flags = judgment.flags.get(judgment.order[0], [])
        if len(judgment.order) != 1 or not any(flag.startswith("rating=") for flag in flags):
            tally.left_out[NO_ATTEMPT] += 1
            continue
        _count(judgment, tally)
        response = evidence.response(judgment, judgment.order[0])
        yield AttemptRow(
            evidence.prompt(judgment), response.text, response.model, judgment.rater_id, judgment.comment, tuple(flags)
        )


def rows_of_pairs(pairs: Iterable[Pair]) -> Iterator[PairRow]:
    """Pairs that came without judgments."""
    for pair in pairs:
        yield PairRow(pair.prompt, pair.chosen, pair.rejected, pair.group_id, pair.weight, pair.margin,
                      principle=pair.principle or "")  # fmt: skip


def labels_of_pairs(rows: Iterable[PairRow], tally: Tally) -> Iterator[LabelRow]:
    """Each chosen response as a good one and each rejected one as a bad one."""
    for row in rows:
        if row.weight == 0.5:
            tally.left_out[TIED] += 1
            continue
        for text, good in ((row.chosen, True), (row.rejected, False)):
            yield LabelRow(row.prompt, text, good, row.group_id, principle=row.principle)


def _too_weak(judgment: Judgment, selection: Selection) -> bool:
    return notches(judgment) == WEAKEST and not selection.keep_weakest


def _decided(judgment: Judgment, selection: Selection, tally: Tally) -> list[tuple[str, str]]:
    if _too_weak(judgment, selection):
        tally.left_out[WEAK] += 1
        return []
    pairs = wins(judgment)
    tally.left_out[NO_PAIR] += not (pairs or ties(judgment) or judgment.edit)
    return pairs


def _edits(evidence: Evidence, judgment: Judgment, tally: Tally) -> Iterator[PairRow]:
    """The rewrites of a judgment, each chosen against what it rewrites."""
    for response, text in judgment.edit.items():
        try:
            clean_text(text)
        except ValueError as error:
            raise InputError(f"the edit of judgment {judgment.id} {error}", file=evidence.judgments.path,
                             field="edit") from None  # fmt: skip
        row = PairRow(
            prompt=evidence.prompt(judgment),
            chosen=text,
            rejected=evidence.text(judgment, response),
            group_id=judgment.set_id,
            **_provenance(judgment),
        )
        yield from _unless_identical(row, tally)


def _unless_identical(row: PairRow, tally: Tally) -> Iterator[PairRow]:
    if row.chosen == row.rejected:
        tally.left_out[IDENTICAL] += 1
    else:
        yield row


def _provenance(judgment: Judgment) -> dict[str, Any]:
    return {
        "principle": judgment.principle or "",
        "judgment_id": judgment.id,
        "rater_id": judgment.rater_id,
        "rater_kind": judgment.rater_kind,
        "reason": judgment.comment,
        "decided": ", ".join(deciding(judgment)),
    }


def _sigma(difference: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-difference)) if difference >= 0 else 1 - 1 / (1 + math.exp(difference))
