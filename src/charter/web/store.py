"""Slots, leases and votes: which person gets which set, and the answer.

All state is in the database, so a second process or a restart loses nothing. A vote and the end of its slot are one
transaction; the judgment is sealed to the chain in it. The queries are short enough to run where the requests are answered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import sqlalchemy as sa

from charter.records import Judgment, LabelSet, Prompt, Rank, Response
from charter.run.hashes import derive_seed
from charter.votes.judgments import DECIDED, deciding, seal, ulid
from charter.web import tables as t
from charter.web.project import Items, LabelSettings, wanted_slots
from charter.web.statements import (
    APPEND,
    BEFORE,
    FINISH,
    HANDED_OUT,
    HELD,
    NEW_TIP,
    SEEN,
    SHOW,
    SHOWN,
    TAKE,
    TIP,
    TO_SHOW,
    add_records,
    add_slot,
    tagged,
    take_statement,
)  # fmt: skip

REPEAT_GAP = 5  # so many other sets lie between a set and its repeat, or it would be answered from memory
Stored = Literal["stored", "extra", "already", "skipped", "vote-stands"]


class NotHandedOut(Exception):
    """A vote on a set that this rater was never shown."""


@dataclass(frozen=True)
class Handout:
    """A set as one person sees it: ``order`` is that of the responses on the page."""

    set: LabelSet
    prompt: Prompt
    responses: tuple[Response, ...]
    shown: float
    draft: dict[str, str] = field(default_factory=dict)

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(response.id for response in self.responses)


@dataclass(frozen=True)
class RaterAnswer:
    """The answer of a person to one set, checked. Empty ``ranks``: no verdict."""

    ranks: dict[str, Rank]
    strength: int | None = None
    edit: dict[str, str] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    comment: str = ""
    timings: dict[str, float] = field(default_factory=dict)


def balanced_order(ids: Sequence[str], number: int, seed: int) -> tuple[str, ...]:
    """The ``number``-th row of a Williams design over the ids: in K rows (2K for odd K) every response stands in every place
    equally often, and follows every other one equally often. The design begins at a draw from the ids and ``seed``."""
    k = len(ids)
    start = derive_seed(seed, "order", *sorted(ids))
    base = sorted(ids, key=lambda key: derive_seed(seed, "order", key))
    row = (start + number) % (k if k % 2 == 0 else 2 * k)
    zigzag = [(i + 1) // 2 if i % 2 else (k - i // 2) % k for i in range(k)]  # 0, 1, K-1, 2, K-2, …
    order = tuple(base[(place + row) % k] for place in zigzag)
    return order if row < k else order[::-1]


def pairs_and_ties(ranks: Mapping[str, Rank]) -> tuple[int, int]:
    """Pairs that a ranking orders or ties, and how many of them are ties; two nonsense responses do not make a pair."""
    numbers = [rank for rank in ranks.values() if rank != "F"]
    n = len(numbers)
    ties = sum(numbers[i] == numbers[j] for i in range(n) for j in range(i))
    return n * (n - 1) // 2 + n * (len(ranks) - n), ties


class Store:
    """The database of one project."""

    def __init__(self, engine: sa.Engine, settings: LabelSettings) -> None:
        self.engine, self.settings = engine, settings
        self.reader = engine.execution_options(read=True)
        self.taken_twice = t.integrity_error(engine)
        self.parts = lru_cache(maxsize=8192)(self._parts)
        self.gold: list[str] = []
        self.work: set[str] = set()
        """The gold sets that may be handed out, and the sets of the work that may be repeated: those of the files as they are
        now."""

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection whose statements each see the database as it is."""
        with self.reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction; on SQLite it is the only writer from its start."""
        with self.engine.begin() as connection:
            yield connection

    # -- what is to be labelled ------------------------------------------------------------------------------------------

    def take_in(self, items: Items) -> None:
        """Add what is new, and make the slots of each set as many as the overlap asks for. Votes are never touched."""
        settings = self.settings
        self.gold = [label_set.id for label_set in items.sets.values() if label_set.role == "gold"]
        with self.write() as db:
            add_records(db, t.prompts, items.prompts.values())
            add_records(db, t.responses, items.responses.values())
            self.add_sets(db, items.sets.values())
            for label_set in items.sets.values():
                if label_set.gold is not None:  # a known answer may have been corrected since
                    db.execute(t.sets.update().where(t.sets.c.id == label_set.id).values(record=label_set.model_dump_json()))
            work = [label_set for label_set in items.sets.values() if label_set.role == "work"]
            self.work = {label_set.id for label_set in work}
            have: dict[str, list[sa.Row[Any]]] = {}
            for row in db.execute(sa.select(t.slots).where(t.slots.c.role == "work", t.slots.c.state != "skipped")):
                have.setdefault(row.set_id, []).append(row)
            wanted = wanted_slots(work, settings.overlap, settings.seed)
            order = sorted(work, key=lambda label_set: derive_seed(settings.seed, "position", label_set.id))
            new, too_many, back = [], list[int](), list[int]()
            for position, label_set in enumerate(order):
                all_of_set = have.get(label_set.id, [])
                rows = [row for row in all_of_set if not row.extra]
                free = [row.id for row in rows if row.rater_id is None]
                missing = wanted[label_set.id] - len(rows)
                extra = [row.id for row in all_of_set if row.extra][: max(0, missing)]  # count before anybody else is asked
                back += extra
                missing -= len(extra)
                new += [
                    {"set_id": label_set.id, "role": "work", "priority": label_set.priority, "position": float(position),
                     "state": "open", "extra": False}
                    for _ in range(missing)
                ]  # fmt: skip
                too_many += free[: max(0, -missing)]
            # Left out since: nobody else is asked, and the progress does not count them. Dialogues are in no file of items.
            gone = [row for key in have.keys() - wanted.keys() if settings.kind != "redteam" for row in have[key]]
            too_many += [row.id for row in gone if row.rater_id is None]
            if new:
                db.execute(t.slots.insert(), new)
            for ids, change in (
                (too_many, t.slots.delete()),
                (back, t.slots.update().values(extra=False)),
                ([row.id for row in gone if row.rater_id is not None], t.slots.update().values(extra=True)),
            ):
                for start in range(0, len(ids), 500):
                    db.execute(change.where(t.slots.c.id.in_(ids[start : start + 500])))

    def add_sets(self, db: sa.Connection, sets: Iterable[LabelSet]) -> None:
        new = add_records(db, t.sets, sets)
        tags = [{"set_id": label_set.id, "tag": tag} for label_set in new for tag in set(label_set.tags)]
        if tags:
            db.execute(t.set_tags.insert(), tags)

    def _parts(self, set_id: str) -> tuple[LabelSet, Prompt, dict[str, Response]]:
        """A set, its prompt and its responses by id. KeyError where there is no such set. They never change."""
        with self.read() as db:
            record = db.scalar(sa.select(t.sets.c.record).where(t.sets.c.id == set_id))
            if record is None:
                raise KeyError(set_id)
            label_set = LabelSet.model_validate_json(record)
            prompt = db.scalar(sa.select(t.prompts.c.record).where(t.prompts.c.id == label_set.prompt_id))
            rows = db.scalars(sa.select(t.responses.c.record).where(t.responses.c.id.in_(label_set.response_ids)))
            responses = [Response.model_validate_json(row) for row in rows]
        return label_set, Prompt.model_validate_json(prompt or ""), {response.id: response for response in responses}

    # -- leases ----------------------------------------------------------------------------------------------------------

    def claim(self, rater_id: str, now: float, opt_out: Sequence[str] = ()) -> Handout | None:
        """The set that this rater has and has not answered, or else the next one; None where there is none left.

        One statement takes the slot, so that two people never hold the same; the lease lasts ``lease_minutes`` from now.
        """
        until = now + 60 * self.settings.lease_minutes
        for _ in range(5):
            try:
                with self.write() as db:
                    self.give_back(db, rater_id, opt_out)  # an answer that was taken back may have brought one
                    set_id = self._take(db, rater_id, now, until, tuple(opt_out))
                    if set_id is None:
                        return None
                    order, shown, draft = self._shown(db, set_id, rater_id, now)
            except self.taken_twice:
                continue  # two tabs of one person took two slots of one set at once; one of them asks again
            return self.handout(set_id, order, shown, draft)
        return None

    def give_back(self, db: sa.Connection, rater_id: str, tags: Sequence[str]) -> None:
        """The sets with one of these tags that this rater holds and has not answered go to others."""
        if not tags:
            return
        open_slots = (t.slots.c.rater_id == rater_id, t.slots.c.state == "open", t.slots.c.set_id.in_(tagged(tags)))
        private = (t.slots.c.role != "work") | t.slots.c.extra  # made for this rater alone
        db.execute(t.slots.delete().where(*open_slots, private))
        db.execute(t.slots.update().where(*open_slots).values(rater_id=None, lease_until=None))

    def _shown(self, db: sa.Connection, set_id: str, rater_id: str, now: float) -> tuple[Sequence[str], float, dict[str, str]]:
        """Order, time and draft of a set that this rater holds; the first time an order is dealt and kept."""
        row = SHOWN.first(db, key=set_id, me=rater_id)
        if row is not None:
            return json.loads(row[0]), row[1], json.loads(row[2] or "{}")
        record, before = TO_SHOW.first(db, key=set_id)
        label_set = LabelSet.model_validate_json(record)
        order = balanced_order(label_set.response_ids, before, self.settings.seed)
        if label_set.role == "repeat":  # in another order than at first, or a liking for a place would look like constancy
            order = self._other_way_round(db, label_set, rater_id) or order
        SHOW.run(db, set_id=set_id, rater_id=rater_id, order=json.dumps(order), shown=now)
        return order, now, {}

    def _other_way_round(self, db: sa.Connection, label_set: LabelSet, rater_id: str) -> tuple[str, ...] | None:
        """The order in which the rater saw these responses before, reversed."""
        rows = db.scalars(sa.select(t.handouts.c.order).where(t.handouts.c.rater_id == rater_id))
        for order in map(json.loads, rows):
            if sorted(order) == sorted(label_set.response_ids):
                return tuple(reversed(order))
        return None

    def handout(self, set_id: str, order: Sequence[str], shown: float, draft: dict[str, str]) -> Handout:
        """A set with its responses in this order. KeyError where there is no such set."""
        label_set, prompt, responses = self.parts(set_id)
        return Handout(label_set, prompt, tuple(responses[key] for key in order), shown, draft)

    def _take(self, db: sa.Connection, rater_id: str, now: float, until: float, opt_out: tuple[str, ...]) -> str | None:
        mixed_in = self.settings.gold is not None or self.settings.repeat_share > 0
        if mixed_in and HELD.first(db, me=rater_id) is None:
            drawn = self._gold_or_repeat(db, rater_id, until, opt_out)
            if drawn is not None:
                return drawn
        if opt_out:
            values = {"me": rater_id, "now": now, "until": until, "out": list(opt_out)}
            drawn_id: str | None = db.scalar(take_statement(with_opt_out=True), values)
            return drawn_id
        taken: str | None = TAKE.value(db, me=rater_id, now=now, until=until)
        return taken

    def _gold_or_repeat(self, db: sa.Connection, rater_id: str, until: float, opt_out: tuple[str, ...]) -> str | None:
        """The gold set or the repeat whose turn it is by a draw, its slot made and leased; None where it is nobody's turn."""
        settings = self.settings
        count = HANDED_OUT.value(db, me=rater_id)
        draw = derive_seed(settings.seed, "mixed in", rater_id, count) % 10**9 / 10**9
        gold = settings.gold_share if settings.gold is not None else 0.0
        if draw < gold:
            mine = sa.select(t.slots.c.set_id).where(t.slots.c.rater_id == rater_id)
            unseen = (
                sa.select(t.sets.c.id).where(t.sets.c.id.in_(self.gold), t.sets.c.id.not_in(mine)).order_by(t.sets.c.seq).limit(1)
            )
            if opt_out:
                unseen = unseen.where(t.sets.c.id.not_in(tagged(opt_out)))
            set_id = db.scalar(unseen)
            role = "gold"
        elif draw < gold + settings.repeat_share:
            set_id = self._repeat(db, rater_id, opt_out)
            role = "repeat"
        else:
            return None
        if set_id is None:
            return None
        add_slot(db, set_id, role, "open", rater_id=rater_id, lease_until=until)
        return str(set_id)

    def _repeat(self, db: sa.Connection, rater_id: str, opt_out: Sequence[str]) -> str | None:
        """A repeat of the earliest set that this rater answered long enough ago and was not asked again."""
        mine = t.judgments.alias("mine")
        rows = db.execute(
            sa.select(t.sets.c.record)
            .join(mine, mine.c.set_id == t.sets.c.id)
            .where(mine.c.rater_id == rater_id, mine.c.current, mine.c.action == "vote", t.sets.c.role == "work",
                   t.sets.c.id.not_in(tagged(opt_out)))
            .order_by(mine.c.seq)
        ).scalars()  # fmt: skip
        answered = [LabelSet.model_validate_json(row) for row in rows]
        for label_set in answered[: max(0, len(answered) - REPEAT_GAP)]:
            if label_set.id not in self.work:  # taken out of the files since
                continue
            repeat = LabelSet(**label_set.model_dump(exclude={"id", "role"}), role="repeat")
            seen = db.scalar(sa.select(t.slots.c.id).where(t.slots.c.set_id == repeat.id, t.slots.c.rater_id == rater_id))
            if seen is None:
                self._tip(db)
                self.add_sets(db, [repeat])
                return repeat.id
        return None

    def handed(self, rater_id: str, set_id: str) -> Handout:
        """A set that this rater was shown. NotHandedOut where it was not."""
        with self.read() as db:
            row = SHOWN.first(db, key=set_id, me=rater_id)
        if row is None:
            raise NotHandedOut(set_id)
        return self.handout(set_id, json.loads(row[0]), row[1], json.loads(row[2] or "{}"))

    # -- votes -----------------------------------------------------------------------------------------------------------

    def vote(
        self, rater_id: str, handout: Handout, answer: RaterAnswer, now: float, *, instructions_hash: str,
        action: Literal["vote", "skip"] = "vote",
    ) -> Stored:  # fmt: skip
        """Store an answer, or with ``skip`` the reason for its absence; the set is not given to this rater again.

        A vote beats a skip, whichever comes first. "extra": the lease ran out and somebody else has the slot, so the vote counts
        beyond the overlap. "already": the rater's first vote stands. "vote-stands": so it does, and the skip is not stored.
        """
        set_id, role = handout.set.id, handout.set.role
        state = "done" if action == "vote" else "skipped"
        with self.write() as db:
            tip = self._tip(db)  # first, so that on PostgreSQL votes are chained one after another
            slot = FINISH.first(db, key=set_id, me=rater_id, state_now=state)
            before = None if slot is not None else SEEN.first(db, key=set_id, me=rater_id)
            extra = slot is None
            if before is not None:
                if action == "skip":
                    return "skipped" if before[1] == "skipped" else "vote-stands"
                if before[1] != "skipped":
                    return "already"
                extra = not (role != "work" or self._take_back_slot(db, set_id, before[0]))
                db.execute(t.slots.update().where(t.slots.c.id == before[0]).values(state=state))
            elif slot is None:
                add_slot(db, set_id, role, state, extra=True, rater_id=rater_id)
            elif action == "skip" and role == "work" and not slot[3]:  # someone else is asked instead
                db.execute(t.slots.update().where(t.slots.c.id == slot[0]).values(extra=True))
                add_slot(db, set_id, "work", "open", priority=slot[1], position=slot[2])
            self._append(db, tip, rater_id, handout, answer, now, action, instructions_hash)
            if handout.draft:
                db.execute(t.drafts.delete().where(t.drafts.c.set_id == set_id, t.drafts.c.rater_id == rater_id))
        if action == "skip":
            return "skipped"
        return "extra" if extra else "stored"

    def _take_back_slot(self, db: sa.Connection, set_id: str, slot_id: int) -> bool:
        """Give a rater who skipped a set the slot that the skip opened for somebody else; False where somebody took it."""
        free = (
            sa.select(t.slots.c.id)
            .where(t.slots.c.set_id == set_id, t.slots.c.state == "open", t.slots.c.rater_id.is_(None))
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        opened = db.scalar(free)
        if opened is None:
            return False
        db.execute(t.slots.delete().where(t.slots.c.id == opened))
        db.execute(t.slots.update().where(t.slots.c.id == slot_id).values(extra=False))
        return True

    def _tip(self, db: sa.Connection) -> str:
        return str(TIP.value(db))

    def _append(
        self, db: sa.Connection, tip: str, rater_id: str, handout: Handout, answer: RaterAnswer, now: float, action: str,
        instructions_hash: str,
    ) -> Judgment:  # fmt: skip
        label_set = handout.set
        before = BEFORE.value(db, key=label_set.id, me=rater_id)
        if before is not None:
            db.execute(t.judgments.update().where(t.judgments.c.id == before).values(current=False))
        judgment = seal(
            Judgment(
                id=ulid(int(now * 1000)),
                set_id=label_set.id,
                prompt_id=label_set.prompt_id,
                rater_id=rater_id,
                rater_kind="human",
                direction=label_set.direction,
                order=handout.order,
                instructions_hash=instructions_hash,
                ranks=answer.ranks,
                strength=answer.strength,
                flags=answer.flags,
                edit=answer.edit,
                comment=answer.comment,
                timings={"shown": handout.shown, "submitted": now, **answer.timings},
                supersedes=before,
            ),
            tip,
        )
        n_pairs, n_ties = pairs_and_ties(answer.ranks)
        APPEND.run(db, id=judgment.id, set_id=label_set.id, rater_id=rater_id, action=action, current=True, created=now,
                   seconds=answer.timings.get("active_s"), n_pairs=n_pairs, n_ties=n_ties,
                   record=judgment.model_dump_json())  # fmt: skip
        NEW_TIP.run(db, tip=judgment.hash)
        return judgment

    def undo(self, rater_id: str, now: float, *, instructions_hash: str) -> str | None:
        """Take back this rater's last answer of the last ``undo_minutes`` and lease the set to them again; its id, or None
        where there is none. The chain keeps the answer, and after it a line without verdict that supersedes it."""
        with self.write() as db:
            tip = self._tip(db)
            last = db.execute(
                sa.select(t.judgments.c.record, t.judgments.c.action)
                .where(t.judgments.c.rater_id == rater_id, t.judgments.c.current, t.judgments.c.action != "withdrawn",
                       t.judgments.c.created >= now - 60 * self.settings.undo_minutes)
                .order_by(t.judgments.c.seq.desc()).limit(1)
            ).first()  # fmt: skip
            if last is None:
                return None
            judgment = Judgment.model_validate_json(last.record)
            mine = (t.slots.c.set_id == judgment.set_id) & (t.slots.c.rater_id == rater_id)
            slot = db.execute(sa.select(t.slots.c.id, t.slots.c.state).where(mine)).first()
            label_set = LabelSet.model_validate_json(
                db.scalar(sa.select(t.sets.c.record).where(t.sets.c.id == judgment.set_id)) or ""
            )
            if slot is None or label_set.kind == "redteam":  # a dialogue has gone on from the chosen candidate
                return None
            if slot.state == "skipped" and label_set.role == "work":  # the slot that was freed, if nobody took it
                self._take_back_slot(db, label_set.id, slot.id)
            until = now + 60 * self.settings.lease_minutes
            db.execute(t.slots.update().where(t.slots.c.id == slot.id).values(state="open", lease_until=until))
            handout = self.handout(label_set.id, judgment.order, judgment.timings.get("shown", now), {})
            self._append(db, tip, rater_id, handout, RaterAnswer({}, flags={label_set.id: ["withdrawn"]}), now, "withdrawn",
                         instructions_hash)  # fmt: skip
            if last.action == "vote":
                self._save_draft(db, rater_id, label_set.id, form_of(judgment))
            return label_set.id

    def save_draft(self, rater_id: str, set_id: str, form: Mapping[str, str]) -> None:
        """Keep the fields of an unfinished form. NotHandedOut where the set was never shown to this rater."""
        self.handed(rater_id, set_id)
        with self.write() as db:
            self._save_draft(db, rater_id, set_id, form)

    def _save_draft(self, db: sa.Connection, rater_id: str, set_id: str, form: Mapping[str, str]) -> None:
        mine = (t.drafts.c.set_id == set_id) & (t.drafts.c.rater_id == rater_id)
        db.execute(t.drafts.delete().where(mine))
        db.execute(t.drafts.insert().values(set_id=set_id, rater_id=rater_id, form=json.dumps(dict(form))))

    # -- dialogues -------------------------------------------------------------------------------------------------------

    def go_on(self, db: sa.Connection, dialogue: int, before: str, after: str, *, is_open: bool = True) -> bool:
        """Store a red-team dialogue where it is open and still as it was read (``before``, JSON); False where it is not: while a
        model wrote an answer, the person may have ended or continued it in another tab, and that stands."""
        result = db.execute(
            t.dialogues.update()
            .where(t.dialogues.c.id == dialogue, t.dialogues.c.open, t.dialogues.c.state == before)
            .values(state=after, open=is_open)
        )
        return result.rowcount == 1

    def vote_on_turn(
        self, rater_id: str, handout: Handout, answer: RaterAnswer, now: float, *, instructions_hash: str, dialogue: int,
        before: str, after: str,
    ) -> Stored | None:  # fmt: skip
        """Store a turn of a red-team dialogue, the vote on its two candidates and the continued dialogue, all or nothing.

        None where the dialogue is not as it was read (:meth:`go_on`). "already" where the rater has a vote on this turn from a
        database that was lost since: that vote stays and the dialogue continues.
        """
        label_set = handout.set
        with self.write() as db:
            tip = self._tip(db)
            if not self.go_on(db, dialogue, before, after):
                return None
            if SEEN.first(db, key=label_set.id, me=rater_id) is not None:
                return "already"
            add_records(db, t.prompts, [handout.prompt])
            add_records(db, t.responses, handout.responses)
            self.add_sets(db, [label_set])
            add_slot(db, label_set.id, "work", "done", rater_id=rater_id)
            self._append(db, tip, rater_id, handout, answer, now, "vote", instructions_hash)
        return "stored"


def form_of(judgment: Judgment) -> dict[str, str]:
    """The fields of the label page's form that give this judgment."""
    form = {f"rank:{key}": str(rank) for key, rank in judgment.ranks.items()}
    form |= {f"edit:{key}": text for key, text in judgment.edit.items()}
    if judgment.strength is not None:  # 1 … 8 from the far left notch
        form["strength"] = str(5 - judgment.strength if judgment.strength > 0 else 4 - judgment.strength)
    elif len(judgment.ranks) == len(judgment.order) == 2 and "F" not in judgment.ranks.values():  # left, tie or right
        first, second = (judgment.ranks[key] for key in judgment.order)
        form["strength"] = "tie" if first == second else "1" if first == 1 else "8"
    form |= {DECIDED + key: "1" for key in deciding(judgment)}
    form["comment"] = judgment.comment
    return form
