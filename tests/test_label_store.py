"""Slots, leases and votes: nobody gets a set twice, no two people the same slot, no vote is lost. On both databases."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from charter.errors import InputError
from charter.records import Generation, Judgment, LabelSet, Prompt, Response
from charter.run.files import write_jsonl
from charter.votes.judgments import current, read_judgments
from charter.votes.merging import merge_judgments
from charter.web import mirror as mirror_module
from charter.web import tables as t
from charter.web.mirror import Mirror
from charter.web.project import wanted_slots
from charter.web.store import Handout, NotHandedOut, RaterAnswer, Store, balanced_order, pairs_and_ties
from charter.web.tables import open_database
from label_project import database, known, make_project

LEASE_S = 30 * 60


@pytest.fixture(params=["sqlite", "postgresql"])
def make_store(request, tmp_path):
    """Stores of small projects; all that a test makes share one database, as after a restart."""
    with database(request.param, tmp_path) as url:
        engines = []

        def make(**settings) -> Store:
            project = make_project(tmp_path, **settings)
            engines.append(open_database(url))
            store = Store(engines[-1], project.settings)
            store.take_in(project.items)
            return store

        yield make
        for engine in engines:
            engine.dispose()


def ranked(handout, *, best=0) -> RaterAnswer:
    return RaterAnswer({key: 1 if place == best else 2 for place, key in enumerate(handout.order)})


def label_all(store: Store, rater: str, now: float = 0.0) -> list[str]:
    """Votes until there is nothing left; the ids of the sets."""
    found = []
    while (handout := store.claim(rater, now)) is not None:
        assert store.vote(rater, handout, ranked(handout), now, instructions_hash="v") == "stored"
        found.append(handout.set.id)
        now += 1
    return found


def slots(store: Store) -> Counter:
    with store.read() as db:
        return Counter(tuple(row) for row in db.execute(sa.select(t.slots.c.state, t.slots.c.extra)))


def records(store: Store, column=t.judgments.c.record):
    with store.read() as db:
        return list(db.scalars(sa.select(column).order_by(t.judgments.c.seq)))


def test_everyone_gets_every_set_once_and_slots_run_out(make_store):
    store = make_store(n=4, overlap=2)
    first = label_all(store, "ann")
    assert sorted(first) == sorted(set(first))
    assert len(first) == 4
    assert len(label_all(store, "bob")) == 4
    assert label_all(store, "cat") == []
    assert slots(store) == {("done", False): 8}


def test_a_fractional_overlap_gives_that_share_a_second_rater(make_store):
    store = make_store(n=10, overlap=1.3)
    assert len(label_all(store, "ann")) == 10
    assert len(label_all(store, "bob")) == 3


def test_an_unanswered_set_is_there_again_after_the_tab_was_closed(make_store):
    store = make_store(n=4)
    handout = store.claim("ann", 0.0)
    store.save_draft("ann", handout.set.id, {"rank:x": "2"})
    again = store.claim("ann", 60.0)
    assert (again.set.id, again.order, again.shown) == (handout.set.id, handout.order, 0.0)
    assert again.draft == {"rank:x": "2"}
    assert store.claim("bob", 60.0).set.id != handout.set.id


def test_an_expired_lease_is_given_on_and_the_late_vote_is_kept_as_extra(make_store):
    store = make_store(n=1)
    late = store.claim("ann", 0.0)
    assert store.claim("bob", LEASE_S - 1) is None
    handout = store.claim("bob", LEASE_S + 1)
    assert handout.set.id == late.set.id
    assert store.vote("ann", late, ranked(late), LEASE_S + 2, instructions_hash="v") == "extra"
    assert store.vote("bob", handout, ranked(handout), LEASE_S + 3, instructions_hash="v") == "stored"
    assert slots(store) == {("done", False): 1, ("done", True): 1}
    assert len(records(store)) == 2
    assert store.claim("ann", LEASE_S + 4) is None


def test_a_vote_that_comes_late_but_in_time_for_its_slot_is_no_extra(make_store):
    store = make_store(n=1)
    handout = store.claim("ann", 0.0)
    assert store.vote("ann", handout, ranked(handout), LEASE_S * 3, instructions_hash="v") == "stored"


def test_a_form_sent_twice_counts_once(make_store):
    store = make_store(n=2)
    handout = store.claim("ann", 0.0)
    assert store.vote("ann", handout, ranked(handout), 1.0, instructions_hash="v") == "stored"
    assert store.vote("ann", handout, ranked(handout, best=1), 2.0, instructions_hash="v") == "already"
    assert len(records(store)) == 1


def test_a_vote_beats_a_skip_and_takes_back_the_slot_that_the_skip_opened(make_store):
    store = make_store(n=1)
    handout = store.claim("ann", 0.0)

    def answer(action: str, now: float, rater: str = "ann") -> str:
        given = ranked(handout) if action == "vote" else RaterAnswer({}, flags={handout.set.id: ["skipped", "other"]})
        return store.vote(rater, handout, given, now, instructions_hash="v", action=action)

    assert [answer("skip", 1.0), answer("skip", 2.0), answer("vote", 3.0)] == ["skipped", "skipped", "stored"]
    assert [answer("skip", 4.0), answer("vote", 5.0)] == ["vote-stands", "already"]
    assert store.claim("bob", 6.0) is None  # the vote fills the one slot of the set
    judgments = [Judgment.model_validate_json(row) for row in records(store)]
    assert [one.has_verdict for one in judgments] == [False, True]
    assert judgments[1].supersedes == judgments[0].id


def test_a_vote_after_a_skip_counts_as_extra_where_somebody_else_has_the_set(make_store):
    store = make_store(n=1)
    handout = store.claim("ann", 0.0)
    skip = RaterAnswer({}, flags={handout.set.id: ["skipped", "other"]})
    store.vote("ann", handout, skip, 1.0, instructions_hash="v", action="skip")
    other = store.claim("bob", 2.0)
    assert store.vote("ann", handout, ranked(handout), 3.0, instructions_hash="v") == "extra"
    assert store.vote("bob", other, ranked(other), 4.0, instructions_hash="v") == "stored"


def test_only_what_was_handed_out_can_be_voted_on(make_store):
    store = make_store(n=2)
    handout = store.claim("ann", 0.0)
    with pytest.raises(NotHandedOut):
        store.handed("bob", handout.set.id)
    with pytest.raises(NotHandedOut):
        store.save_draft("bob", handout.set.id, {})


def test_undo_keeps_the_line_and_supersedes_it(make_store):
    store = make_store(n=2)
    handout = store.claim("ann", 0.0)
    store.vote("ann", handout, ranked(handout), 1.0, instructions_hash="v")
    store.claim("ann", 2.0)  # the next one is on the screen already
    assert store.undo("ann", 3.0, instructions_hash="v") == handout.set.id
    assert store.undo("bob", 3.0, instructions_hash="v") is None
    again = store.claim("ann", 4.0)
    assert again.set.id == handout.set.id
    assert again.draft[f"rank:{handout.order[0]}"] == "1"
    store.vote("ann", again, ranked(again, best=2), 5.0, instructions_hash="v")
    first, taken_back, second = (json.loads(row) for row in records(store))
    assert taken_back["supersedes"] == first["id"]
    assert taken_back["ranks"] == {}
    assert second["supersedes"] == taken_back["id"]
    assert [one.ranks for one in current(map(load, records(store)))] == [ranked(again, best=2).ranks]
    assert len(label_all(store, "ann", 6.0)) == 1


def load(row):
    from charter.records import Judgment

    return Judgment.model_validate_json(row)


def test_undo_ends_after_its_time_and_goes_back_one_by_one(make_store):
    store = make_store(n=3)
    done = label_all(store, "ann")
    assert store.undo("ann", 5.0, instructions_hash="v") == done[-1]
    assert store.undo("ann", 6.0, instructions_hash="v") == done[-2]
    assert store.undo("ann", 601.0, instructions_hash="v") is None


def test_a_skipped_set_goes_to_someone_else_and_undo_gets_it_back(make_store):
    store = make_store(n=1)
    handout = store.claim("ann", 0.0)
    answer = RaterAnswer({}, flags={handout.set.id: ["skipped", "unclear"]})
    store.vote("ann", handout, answer, 1.0, instructions_hash="v", action="skip")
    assert store.claim("ann", 2.0) is None
    assert slots(store) == {("open", False): 1, ("skipped", True): 1}
    assert store.undo("ann", 3.0, instructions_hash="v") == handout.set.id
    assert store.claim("ann", 4.0).set.id == handout.set.id
    assert slots(store) == {("open", False): 1}
    store.vote("ann", handout, answer, 5.0, instructions_hash="v", action="skip")
    assert len(label_all(store, "bob")) == 1
    store.undo("ann", 6.0, instructions_hash="v")  # bob has the slot: ann's vote is one more than was asked for
    again = store.claim("ann", 7.0)
    assert store.vote("ann", again, ranked(again), 8.0, instructions_hash="v") == "stored"
    assert slots(store) == {("done", False): 1, ("done", True): 1}


def test_tags_that_a_person_opted_out_of_are_not_given_to_them(make_store):
    store = make_store(n=2)
    with store.write() as db:
        one = db.scalar(sa.select(t.sets.c.id).limit(1))
        db.execute(t.set_tags.insert().values(set_id=one, tag="violence"))
    found = store.claim("ann", 0.0, ("violence", "other"))
    assert found.set.id != one
    store.vote("ann", found, ranked(found), 1.0, instructions_hash="v")
    assert store.claim("ann", 2.0, ("violence",)) is None
    assert store.claim("ann", 2.0).set.id == one


def tag(store: Store, set_id: str, word: str = "violence") -> None:
    with store.write() as db:
        db.execute(t.set_tags.insert().values(set_id=set_id, tag=word))


def opt_out(store: Store, rater: str, *tags: str) -> None:
    with store.write() as db:
        store.give_back(db, rater, tags)


def test_who_opts_out_gives_back_what_they_hold(make_store):
    store = make_store(n=2)
    held = store.claim("ann", 0.0)
    tag(store, held.set.id)
    opt_out(store, "ann", "other")
    assert store.claim("ann", 1.0).set.id == held.set.id
    opt_out(store, "ann", "violence")
    assert store.claim("bob", 2.0).set.id == held.set.id  # the first in line again, with no lease to wait for
    assert store.claim("ann", 3.0, ("violence",)).set.id != held.set.id
    assert slots(store) == {("open", False): 2}
    assert store.vote("ann", held, ranked(held), 4.0, instructions_hash="v") == "extra"  # from a page that was still open


def test_an_answer_that_is_taken_back_after_an_opt_out_goes_to_somebody_else(make_store):
    store = make_store(n=1)
    handout = store.claim("ann", 0.0)
    tag(store, handout.set.id)
    store.vote("ann", handout, ranked(handout), 1.0, instructions_hash="v")
    assert store.undo("ann", 2.0, instructions_hash="v") == handout.set.id
    assert store.claim("ann", 3.0, ("violence",)) is None
    assert store.claim("bob", 4.0).set.id == handout.set.id
    assert slots(store) == {("open", False): 1}


def test_no_repeat_and_no_gold_of_a_tag_that_a_person_opted_out_of(make_store, tmp_path):
    (tmp_path / "p").mkdir()
    known(tmp_path / "p/gold.jsonl", 3, [1, 2, "F"], "Gold")
    store = make_store(n=30, gold="gold.jsonl", gold_share=0.3, repeat_share=0.3)
    with store.read() as db:
        gold = list(db.scalars(sa.select(t.sets.c.id).where(t.sets.c.role == "gold")))
    for one in gold[1:]:
        tag(store, one)
    seen: list[LabelSet] = []
    while (handout := store.claim("ann", float(len(seen)), ("violence",))) is not None:
        store.vote("ann", handout, ranked(handout), float(len(seen)), instructions_hash="v")
        seen.append(handout.set)
        if len(seen) == 3:  # answered, and only then tagged: none of them comes back
            early = {one.response_ids for one in seen}
            for one in seen:
                tag(store, one.id)
    roles = Counter(one.role for one in seen)
    assert roles["work"] == 30
    assert roles["gold"] == 1
    assert roles["repeat"] > 0
    assert not early & {one.response_ids for one in seen if one.role == "repeat"}


def turn(number: int = 0) -> Handout:
    """Two candidates of a dialogue's turn."""
    prompt = Prompt.ask(f"Attack {number}?")
    answers = [Response(prompt_id=prompt.id, model="m", text=text, finish_reason="stop",
                        generation=Generation(seed=i, temperature=1.0)) for i, text in enumerate("ab")]  # fmt: skip
    one = LabelSet(prompt_id=prompt.id, kind="redteam", response_ids=tuple(answer.id for answer in answers), tags=("red_team",))
    return Handout(one, prompt, tuple(answers), 0.0)


def begin(store: Store, state: str) -> int:
    with store.write() as db:
        row = db.execute(t.dialogues.insert().values(rater_id="ann", state=state, open=True))
    return row.inserted_primary_key[0]


def states(store: Store) -> list[tuple[str, bool]]:
    with store.read() as db:
        return [tuple(row) for row in db.execute(sa.select(t.dialogues.c.state, t.dialogues.c.open).order_by(t.dialogues.c.id))]


def vote_on(store: Store, handout: Handout, dialogue: int, before: str, after: str):
    return store.vote_on_turn("ann", handout, ranked(handout), 1.0, instructions_hash="v", dialogue=dialogue, before=before,
                              after=after)  # fmt: skip


def test_a_turn_counts_where_the_dialogue_is_as_it_was_read(make_store):
    store = make_store(n=1)
    dialogue, handout = begin(store, "asked"), turn()
    assert vote_on(store, handout, dialogue, "another", "answered") is None
    assert (records(store), states(store)) == ([], [("asked", True)])
    assert vote_on(store, handout, dialogue, "asked", "answered") == "stored"
    assert states(store) == [("answered", True)]
    assert vote_on(store, handout, dialogue, "asked", "answered otherwise") is None
    with store.write() as db:
        assert store.go_on(db, dialogue, "answered", "ended", is_open=False)
        assert not store.go_on(db, dialogue, "ended", "open again")
    assert vote_on(store, turn(1), dialogue, "ended", "answered") is None
    assert (len(records(store)), states(store)) == (1, [("ended", False)])


def test_a_turn_that_was_voted_on_before_the_database_was_lost_goes_on_and_counts_once(make_store):
    store = make_store(n=1)
    assert vote_on(store, turn(), begin(store, "asked"), "asked", "answered") == "stored"
    with store.write() as db:
        db.execute(t.dialogues.delete())
    assert vote_on(store, turn(), begin(store, "asked"), "asked", "answered") == "already"
    assert (len(records(store)), states(store)) == (1, [("answered", True)])


def test_a_turn_whose_vote_cannot_be_stored_still_waits(make_store):
    store = make_store(n=1)
    dialogue, handout = begin(store, "asked"), turn()
    with judgments_away(store), pytest.raises(Exception, match="judgment"):
        vote_on(store, handout, dialogue, "asked", "answered")
    assert states(store) == [("asked", True)]
    assert slots(store) == {("open", False): 1}
    assert vote_on(store, handout, dialogue, "asked", "answered") == "stored"
    assert (len(records(store)), states(store)) == (1, [("answered", True)])


@contextmanager
def judgments_away(store: Store):
    """The table of judgments cannot be found while the block runs: a database that fails half-way."""
    with store.write() as db:
        db.execute(sa.text("alter table judgment rename to away"))
    yield
    with store.write() as db:
        db.execute(sa.text("alter table away rename to judgment"))


def test_gold_and_repeats_are_mixed_in_and_cost_no_slot(make_store, tmp_path):
    (tmp_path / "p").mkdir()
    known(tmp_path / "p/gold.jsonl", 3, [1, 2, "F"], "Gold")
    store = make_store(n=40, gold="gold.jsonl", gold_share=0.2, repeat_share=0.2)
    done = label_all(store, "ann")
    roles = Counter(store.parts(key)[0].role for key in done)
    assert roles["work"] == 40
    assert roles["gold"] == 3
    assert 3 <= roles["repeat"] <= 20
    work = {frozenset(store.parts(key)[0].response_ids): place for place, key in enumerate(done)
            if store.parts(key)[0].role == "work"}  # fmt: skip
    for place, key in enumerate(done):
        if (one := store.parts(key)[0]).role == "repeat":
            assert place - work[frozenset(one.response_ids)] > 5
    orders = {one.set_id: one.order for one in map(Judgment.model_validate_json, records(store))}
    for key in done:  # a liking for a place would look like constancy
        if (one := store.parts(key)[0]).role == "repeat":
            first = next(k for k in done if k != key and set(orders[k]) == set(orders[key]))
            assert orders[key] == orders[first][::-1]


def test_gold_that_was_taken_out_of_the_file_is_handed_to_nobody(make_store, tmp_path):
    (tmp_path / "p").mkdir()
    known(tmp_path / "p/gold.jsonl", 3, [1, 2, "F"], "Wrong")
    make_store(n=20, gold="gold.jsonl", gold_share=0.5)
    known(tmp_path / "p/gold.jsonl", 1, [1, 2, "F"], "Right")
    store = make_store(n=20, gold="gold.jsonl", gold_share=0.5)
    seen = [store.parts(key)[:2] for key in label_all(store, "ann")]
    assert [prompt.last_turn for label_set, prompt in seen if label_set.role == "gold"] == ["Right 0?"]


def test_more_overlap_later_opens_slots_and_less_takes_free_ones_away(make_store):
    store = make_store(n=4)
    label_all(store, "ann")
    store = make_store(n=4, overlap=3)
    assert slots(store) == {("done", False): 4, ("open", False): 8}
    store.claim("bob", 0.0)
    assert slots(make_store(n=4, overlap=1)) == {("done", False): 4, ("open", False): 1}
    assert slots(make_store(n=6, overlap=1)) == {("done", False): 4, ("open", False): 3}


def test_what_was_taken_out_is_asked_of_nobody_else_and_counts_again_when_it_is_back(make_store):
    store = make_store(n=4)
    first = store.claim("ann", 0.0)
    store.vote("ann", first, ranked(first), 0.0, instructions_hash="v")
    held = store.claim("ann", 1.0)
    store = make_store(n=4, kind="pair")
    assert slots(store) == {("done", True): 1, ("open", True): 1, ("open", False): 12}
    late = 1.0 + 2 * LEASE_S
    assert {store.parts(key)[0].kind for key in label_all(store, "bob", late)} == {"pair"}
    assert store.vote("ann", held, ranked(held), late, instructions_hash="v") == "stored"
    store = make_store(n=4)
    assert slots(store) == {("done", False): 2, ("open", False): 2, ("done", True): 12}


def test_a_set_that_was_taken_out_is_not_repeated(make_store):
    label_all(make_store(n=12), "ann")
    store = make_store(n=12, kind="pair", repeat_share=0.5)
    seen = [store.parts(key)[0] for key in label_all(store, "ann", 100.0)]
    assert {label_set.kind for label_set in seen} == {"pair"}
    assert {label_set.role for label_set in seen} == {"work", "repeat"}


def test_many_at_once_never_hold_the_same_slot(make_store):
    store = make_store(n=30, overlap=2)
    held: list[tuple[str, str]] = []
    results: list[str] = []

    def work(rater: str) -> None:
        now = 0.0
        while (handout := store.claim(rater, now)) is not None:
            held.append((rater, handout.set.id))
            results.append(store.vote(rater, handout, ranked(handout), now, instructions_hash="v"))

    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["stored"] * 60
    assert len(set(held)) == 60
    assert set(Counter(key for _, key in held).values()) == {2}
    hashes = [json.loads(row) for row in records(store)]
    assert [row["prev_hash"] for row in hashes] == ["", *(row["hash"] for row in hashes[:-1])]


# -- the files beside the database ---------------------------------------------------------------------------------------


def test_the_files_follow_and_verify(make_store, tmp_path):
    store = make_store(n=3)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    label_all(store, "ann")
    mirror.close()
    assert [one.model_dump_json() for one in read_judgments(tmp_path / "p/judgments.jsonl")] == records(store)
    assert len((tmp_path / "p/responses.jsonl").read_text().splitlines()) == 9


@pytest.mark.parametrize("cut", [1, 5, 400])
def test_a_torn_or_shorter_file_is_made_whole_at_the_next_start(make_store, tmp_path, cut):
    store = make_store(n=3)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    label_all(store, "ann")
    mirror.close()
    file = tmp_path / "p/judgments.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    mirror.close()
    assert file.read_bytes() == whole


def test_a_folder_without_its_database_goes_on_where_the_files_stop(make_store, tmp_path):
    store = make_store(n=3, overlap=2)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    label_all(store, "ann")
    mirror.close()
    with store.write() as db:
        for table in (t.judgments, t.slots, t.handouts, t.sets, t.prompts, t.responses):
            db.execute(table.delete())
        db.execute(t.meta.update().where(t.meta.c.key == "tip").values(value=""))
    store = make_store(n=3, overlap=2)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    assert label_all(store, "ann") == []
    assert len(label_all(store, "bob")) == 3
    mirror.close()
    assert len(read_judgments(tmp_path / "p/judgments.jsonl")) == 6


def test_an_answer_that_is_taken_back_after_the_database_was_lost_shows_the_same_sides(make_store, tmp_path):
    store = make_store(n=8, k=2, kind="pair", overlap=2)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    label_all(store, "ann")
    label_all(store, "bob")
    mirror.close()
    seen = {one.set_id: one.order for one in read_judgments(tmp_path / "p/judgments.jsonl") if one.rater_id == "bob"}
    with store.write() as db:
        for table in (t.judgments, t.slots, t.handouts, t.sets, t.prompts, t.responses):
            db.execute(table.delete())
    store = make_store(n=8, k=2, kind="pair", overlap=2)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    while (key := store.undo("bob", 10.0, instructions_hash="v")) is not None:
        assert store.claim("bob", 10.0).order == seen.pop(key)
    assert not seen
    mirror.close()


def test_the_files_go_on_after_the_database_was_away(make_store, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror_module, "RETRY_S", 0.05)
    store = make_store(n=3)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    with judgments_away(store):
        mirror.wake()
        while mirror.failed is None:
            mirror._thread.join(0.01)
            assert mirror._thread.is_alive()
    label_all(store, "ann")
    mirror.wake()
    while mirror.failed is not None or not (tmp_path / "p/judgments.jsonl").exists():
        mirror._thread.join(0.01)
        assert mirror._thread.is_alive()
    written = [one.model_dump_json() for one in read_judgments(tmp_path / "p/judgments.jsonl")]
    assert written == records(store)[: len(written)]
    mirror.close()
    assert len(read_judgments(tmp_path / "p/judgments.jsonl")) == 3


def test_judgments_merged_from_another_machine_are_read_in(tmp_path):
    machines = []
    for rater in ("ann", "bob"):
        folder = tmp_path / rater
        folder.mkdir()
        project = make_project(folder, n=3, overlap=2)
        store = Store(open_database(project.database), project.settings)
        store.take_in(project.items)
        mirror = Mirror(store, project.folder)
        mirror.start()
        label_all(store, rater)
        mirror.close()
        machines.append((store, project))
    merge_judgments([project.folder / "judgments.jsonl" for _, project in machines], tmp_path / "both.jsonl")
    both = read_judgments(tmp_path / "both.jsonl")
    for store, project in machines:
        write_jsonl(project.folder / "judgments.jsonl", both)
        mirror = Mirror(store, project.folder)
        mirror.start()
        assert slots(store) == {("done", False): 6}
        assert label_all(store, "ann") == label_all(store, "bob") == []
        mirror.close()
        assert read_judgments(project.folder / "judgments.jsonl") == both
        store.engine.dispose()


def test_a_changed_line_stops_the_start_with_its_number(make_store, tmp_path):
    store = make_store(n=3)
    mirror = Mirror(store, tmp_path / "p")
    mirror.start()
    label_all(store, "ann")
    mirror.close()
    file = tmp_path / "p/judgments.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1].replace('"rater_id":"ann"', '"rater_id":"eve"') + lines[2])
    mirror = Mirror(store, tmp_path / "p")
    with pytest.raises(InputError, match="line 2"):
        mirror.start()
    mirror.lock.close()


def test_one_folder_has_one_page(make_store, tmp_path):
    store = make_store(n=3)
    mirror = Mirror(store, tmp_path / "p")
    with pytest.raises(InputError, match="another charter label"):
        Mirror(store, tmp_path / "p")
    mirror.lock.close()


# -- what needs no database ----------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_orders_are_balanced(k, seed):
    ids = [f"r{i}" for i in range(k)]
    rows = [balanced_order(ids, number, seed) for number in range(k if k % 2 == 0 else 2 * k)]
    assert all(sorted(row) == ids for row in rows)
    places = Counter((key, place) for row in rows for place, key in enumerate(row))
    assert set(places.values()) == {len(rows) // k}
    followed = Counter(pair for row in rows for pair in pairwise(row))
    assert k == 1 or set(followed.values()) == {len(rows) // k}
    assert balanced_order(ids[::-1], 0, seed) == rows[0]


@given(st.integers(1, 60), st.floats(1, 5))
def test_slots_add_up_to_the_overlap(n, overlap):
    work = [LabelSet(prompt_id=f"p{i}", kind="thumbs", response_ids=("r",)) for i in range(n)]
    wanted = wanted_slots(work, overlap, 0)
    assert set(wanted.values()) <= {int(overlap), int(overlap) + 1}
    assert abs(sum(wanted.values()) - overlap * n) <= 0.5 + 1e-9


def test_pairs_and_ties_of_a_ranking():
    assert pairs_and_ties({"a": 1, "b": 1, "c": 2, "d": "F", "e": "F"}) == (3 + 6, 1)
    assert pairs_and_ties({"a": "F"}) == (0, 0)
