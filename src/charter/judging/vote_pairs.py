"""People's votes as pairs of responses, and what a judge says about these pairs under each principle."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charter.constitution.constitution import Constitution, Principle
from charter.errors import InputError
from charter.judging.judge import Comparison, Judge, Preference
from charter.judging.people import FOLDER
from charter.raters.comparisons import rater_names
from charter.records import Generation, Prompt, RaterKind, Response, content_id
from charter.run.progress import track
from charter.votes.evidence import Evidence, find_judgments
from charter.votes.imports.files import import_feedback
from charter.votes.training_rows import PairRow, Selection, Tally, pair_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SAYS = 0.1
"""A principle says something about a pair if both orders name the same response and the margin is at least this many nats."""


@dataclass(frozen=True)
class ResponsePair:
    """Two different responses to a prompt, in an order that tells nothing."""

    prompt: Prompt
    first: Response
    second: Response

    @property
    def cluster(self) -> str:
        """What must stay on one side of a split: the opening of the dialogue."""
        opening = next((m for m in self.prompt.messages if m.role == "user"), self.prompt.messages[0])
        return content_id(opening.content)


@dataclass(frozen=True)
class PeoplesPairs:
    """N pairs and V votes on them. Per vote: ``pair`` (V,) its number, ``rater`` (V,) its number, ``sign`` (V,) 1 for the first
    response and −1 for the second. ``left_out``: votes that decide nothing, by reason;
    ``turned``: judgments that asked for the more harmful response, turned round."""

    pairs: tuple[ResponsePair, ...]
    raters: tuple[str, ...]
    pair: Ints
    rater: Ints
    sign: Floats
    left_out: dict[str, int]
    turned: int = 0

    @property
    def clusters(self) -> list[str]:
        """The cluster of each pair."""
        return [pair.cluster for pair in self.pairs]

    def balance(self, votes: NDArray[np.bool_] | None = None) -> Floats:
        """(N,) votes for the first response less votes for the second, of the votes (V,) that a mask takes."""
        weights = self.sign if votes is None else np.where(votes, self.sign, 0.0)
        return np.bincount(self.pair, weights=weights, minlength=len(self.pairs)).astype(np.float64)


def read_peoples_pairs(source: Path, rater_kinds: Sequence[RaterKind] = ("human",)) -> PeoplesPairs:
    """The votes of a run, a folder of feedback, a file of judgments, or any file that ``charter import`` reads.

    Of a run the votes of its label page. Ties, missing verdicts and superseded votes are counted in ``left_out``. InputError
    where no vote decides.
    """
    place = source / FOLDER if (source / FOLDER / "judgments.jsonl").is_file() else source
    file = find_judgments(place)
    if file is not None:
        return _pairs_of(file, source, rater_kinds, {})
    if source.is_dir():
        raise InputError("judgments.jsonl is missing; name a run, a folder of feedback or a file of votes", file=source)
    with tempfile.TemporaryDirectory() as folder:
        imported = import_feedback(source, Path(folder) / "votes")
        return _pairs_of(Path(folder) / "votes/judgments.jsonl", source, rater_kinds, imported["left_out"])


def _pairs_of(file: Path, source: Path, rater_kinds: Sequence[RaterKind], left_out: dict[str, int]) -> PeoplesPairs:
    tally = Tally(left_out=Counter(left_out))
    with Evidence(file) as evidence:
        rows = pair_rows(evidence, Selection(rater_kinds=tuple(rater_kinds), more_harmful="flip"), tally)
        votes = peoples_pairs(rows, evidence.responses)
    counted = {reason: count for reason, count in sorted(tally.left_out.items()) if count}
    if not len(votes.pair):
        reasons = "".join(f"; {count} x {reason}" for reason, count in counted.items())
        raise InputError(f"no vote of kind {' or '.join(rater_kinds)} decides between two responses{reasons}; choose others with "
                         "--rater-kind", file=source)  # fmt: skip
    return replace(votes, left_out=counted, turned=tally.flipped)


def peoples_pairs(rows: Iterator[PairRow], responses: Mapping[str, Response] | None = None) -> PeoplesPairs:
    """Rows of votes, chosen response first, as pairs that several raters may share; ``responses`` by id."""
    known = responses or {}
    pairs: dict[tuple[str, str, str], ResponsePair] = {}
    raters: dict[tuple[str, str], int] = {}
    votes = []
    for row in rows:
        texts = sides(row.chosen, row.rejected)
        key = (row.prompt.id, *texts)
        if key not in pairs:
            ids = dict(zip((row.chosen, row.rejected), row.responses, strict=True))
            first, second = (known.get(ids[text]) or as_response(row.prompt, text) for text in texts)
            pairs[key] = ResponsePair(row.prompt, first, second)
        rater = raters.setdefault((row.rater_id, row.rater_kind), len(raters))
        votes.append((key, rater, 1.0 if texts[0] == row.chosen else -1.0))
    number = {key: i for i, key in enumerate(pairs)}
    return PeoplesPairs(
        tuple(pairs.values()), rater_names(tuple(raters)),
        np.array([number[key] for key, _, _ in votes], dtype=np.int64), np.array([who for _, who, _ in votes], dtype=np.int64),
        np.array([sign for _, _, sign in votes], dtype=np.float64), {},
    )  # fmt: skip


def sides(text: str, other: str) -> tuple[str, str]:
    """Two texts in the order of their hashes, which tells nothing about them."""
    return (text, other) if content_id("side", text) <= content_id("side", other) else (other, text)


def as_response(prompt: Prompt, text: str) -> Response:
    """A text as a response of nobody."""
    return Response(prompt_id=prompt.id, model="", text=text, finish_reason="stop",
                    generation=Generation(seed=0, temperature=0.0))  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """What C principles say about N pairs: ``margins`` (C, N), nats for the first response, 0 where a principle says nothing;
    ``orders`` (C, N, 2), the margins of the single orders, NaN where it was not asked or gave no verdict. ``unread`` counts
    missing verdicts."""

    margins: Floats
    orders: Floats
    unread: int

    @property
    def opinions(self) -> Floats:
        """(C, N) in (−1, 1): twice the probability of the first response, less one."""
        return np.asarray(np.tanh(self.margins / 2), dtype=np.float64)


def ask_principles(
    judge: Judge, principles: Sequence[Principle], pairs: Sequence[ResponsePair], *, batch_size: int = 256, quiet: bool = True
) -> Panel:
    """Every principle asked about every pair to whose prompt it applies, in batches, each in both orders."""
    places = [(c, n) for c, principle in enumerate(principles) for n, pair in enumerate(pairs) if applies(principle, pair.prompt)]
    orders = np.full((len(principles), len(pairs), 2), np.nan)
    starts = range(0, len(places), batch_size)
    for start in track(starts, "principles asked", unit=batch_size, total=len(places), quiet=quiet):
        batch = places[start : start + batch_size]
        comparisons = [Comparison(pairs[n].prompt, pairs[n].first, pairs[n].second, principles[c]) for c, n in batch]
        for (c, n), preference in zip(batch, judge(comparisons), strict=True):
            orders[c, n] = (preference.first_as_a, preference.first_as_b)
    return panel_of(orders, len(places))


def panel_of(orders: Floats, n_asked: int) -> Panel:
    """The panel of single-order margins (C, N, 2)."""
    margins = np.array([[margin_that_says(*pair) for pair in row] for row in orders.tolist()]).reshape(orders.shape[:2])
    return Panel(margins, orders, n_asked - int(np.isfinite(orders.sum(axis=2)).sum()))


def margin_that_says(first_as_a: float, first_as_b: float) -> float:
    """The margin of two orders; 0 if they name different responses, if it is too small, or if it is missing."""
    margin = Preference(first_as_a, first_as_b).margin
    if margin is None or (first_as_a > 0) != (first_as_b > 0) or abs(margin) < SAYS:
        return 0.0
    return margin


def applies(principle: Principle, prompt: Prompt) -> bool:
    """Whether a comparison of responses to the prompt may be made under the principle."""
    return bool(Constitution.model_construct(title="", description="", principles=(principle,)).for_comparison(prompt))
