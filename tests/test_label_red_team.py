"""Red-team dialogues through their page: turns, votes, two tabs at once, a busy model, warnings, and what is left on the disk."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx2
import pytest
import sqlalchemy as sa

from charter.records import Prompt
from charter.web import tables as t
from charter.web.access import COOKIE
from charter.web.candidates import WAITING, Busy
from charter.web.project import open_project
from charter.web.serve import open_site
from label_project import HOME, SAME_SITE, Parrot, World, field, responses, send


def red_team_project(folder, settings="redteam: {turns: 2, dialogues: 1}"):
    (folder / "p").mkdir(exist_ok=True)
    (folder / "p/label.yaml").write_text(f"kind: redteam\n{settings}\n")
    return open_project(folder / "p")


def lines(folder) -> list[dict]:
    file = folder / "p/dialogues.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def dialogues(world) -> list[tuple[bool, dict]]:
    with world.site.store.read() as db:
        return [(row.open, json.loads(row.state)) for row in db.execute(sa.select(t.dialogues))]


def test_a_red_team_dialogue_goes_on_from_the_chosen_answer(tmp_path, open_world):
    world = open_world(red_team_project(tmp_path), [Parrot("one"), Parrot("two")])
    ann = world.person()
    page = ann.get("/label").text
    assert send(ann, "/redteam/say", page, text=" ").status_code == 422
    for turn in range(2):
        page = send(ann, "/redteam/say", page, text=f"attack {turn}").text
        assert "most harmless" in page or "more harmless" in page
        assert send(ann, "/redteam/choose", page).status_code == 422
        page = send(ann, "/redteam/choose", page, strength="8").text
    assert 'name="text"' not in page
    assert send(ann, "/redteam/end", page).status_code == 422
    page = send(ann, "/redteam/end", page, rating="3", about="to break it", tags="insults, other").text
    assert "You have finished" in page
    first, second = world.judgments()
    assert first.direction == "more_harmless"
    assert first.strength == -4
    _, prompt, answers = world.site.store.parts(second.set_id)
    assert prompt.messages[1].content == world.site.store.parts(first.set_id)[2][first.order[1]].text
    assert all(one.text.split()[1:3] == ["attack", "1"] for one in answers.values())
    (line,) = (tmp_path / "p/dialogues.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["transcript"].startswith("\n\nHuman: attack 0\n\nAssistant: ")
    assert (row["rating"], row["task_description"], row["tags"]) == (3, "to break it", ["insults", "other"])
    assert open_project(tmp_path / "p").items.sets == {}  # a second start makes no work of the dialogues


@pytest.fixture
def finished(tmp_path):
    """A project of which one dialogue is finished, closed again."""
    with open_site(red_team_project(tmp_path, "redteam: {turns: 2, dialogues: 2}"), [Parrot("one")]) as site:
        ann = World(site).person()
        page = send(ann, "/redteam/say", ann.get("/label").text, text="attack").text
        page = send(ann, "/redteam/choose", page, strength="1").text
        send(ann, "/redteam/end", page, rating="0", about="first")
    assert [row["task_description"] for row in lines(tmp_path)] == ["first"]
    return site.project


def test_what_a_model_says_after_the_dialogue_was_ended_in_another_tab_is_dropped(tmp_path, open_world):
    class Meanwhile(Parrot):
        def generate(self, conversations, seeds, **_):
            if len(conversations[0]) > 1 and dialogues(world)[0][0]:  # the second turn is being answered
                other.cookies = ann.cookies
                send(other, "/redteam/end", page, rating="2", about="enough")
            return super().generate(conversations, seeds)

    world = open_world(red_team_project(tmp_path, "redteam: {turns: 3, dialogues: 2}"), [Meanwhile("one")])
    ann, other = world.person(), world.stranger()
    page = send(ann, "/redteam/say", ann.get("/label").text, text="attack 0").text
    page = send(ann, "/redteam/choose", page, strength="1").text
    after = send(ann, "/redteam/say", page, text="attack 1")
    assert after.status_code == 409
    assert "continued in another tab" in after.text
    assert ">attack 1</textarea>" in after.text
    ((is_open, state),) = dialogues(world)
    assert (is_open, state["about"], state["waiting"]) == (False, "enough", None)
    assert [message["content"] for message in state["messages"] if message["role"] == "user"] == ["attack 0"]
    assert [row["task_description"] for row in lines(tmp_path)] == ["enough"]
    assert len(world.judgments()) == 1


def test_a_form_of_a_turn_that_is_over_counts_no_second_vote(tmp_path, open_world):
    world = open_world(red_team_project(tmp_path), [Parrot("one")])
    ann = world.person()
    page = send(ann, "/redteam/say", ann.get("/label").text, text="attack").text
    first = send(ann, "/redteam/choose", page, strength="1")
    again = send(ann, "/redteam/choose", page, strength="8")
    assert again.text == first.text
    assert [one.strength for one in world.judgments()] == [4]


def test_many_who_wait_for_the_model_hold_up_no_other_page(tmp_path, open_world):
    class Slow(Parrot):
        def generate(self, conversations, seeds, **_):
            gate.wait()
            return super().generate(conversations, seeds)

    gate, n = threading.Event(), 45  # more than the threads that pages share
    world = open_world(red_team_project(tmp_path), [Slow("one")])
    access, version = world.site.access, world.site.instructions()[0]
    sessions = [access.join(access.invite("labeler", world.now)[0], world.now) for _ in range(n)]
    lead = access.join(access.invite("lead", world.now)[0], world.now)
    with world.site.store.write() as db:
        db.execute(t.raters.update().values(read=version))

    async def say(client, session):
        form = {"form_token": access.visitor(session, world.now).form_token, "text": "my attack"}
        return await client.post("/redteam/say", data=form, headers=SAME_SITE | {"cookie": f"{COOKIE}={session}"})

    async def all_at_once():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=world.app), base_url=HOME) as client:
            asked = [asyncio.ensure_future(say(client, session)) for session in sessions]
            try:
                while sum(one.done() for one in asked) < n - 1 - WAITING:
                    await asyncio.sleep(0)
                page = await client.get("/lead", headers={"cookie": f"{COOKIE}={lead}"})
                assert not gate.is_set()
            finally:
                gate.set()
            return page, await asyncio.gather(*asked)

    page, answers = asyncio.run(asyncio.wait_for(all_at_once(), 60))
    assert page.status_code == 200
    busy = [one for one in answers if one.status_code == 503]
    assert len(busy) == n - 1 - WAITING
    assert sum(one.status_code == 303 for one in answers) == 1 + WAITING
    assert "The model is busy" in busy[0].text
    assert ">my attack</textarea>" in busy[0].text


def test_finished_dialogues_stay_when_the_database_is_lost(tmp_path, finished):
    (tmp_path / "p/labels.db").unlink()
    with open_site(finished, [Parrot("one")]) as site:
        world = World(site)
        ann = world.person()
        page = send(ann, "/redteam/say", ann.get("/label").text, text="attack").text
        page = send(ann, "/redteam/choose", page, strength="1").text
        send(ann, "/redteam/end", page, rating="4", about="second")
        assert len(world.judgments()) == 2
    assert [(row["task_description"], row["rating"]) for row in lines(tmp_path)] == [("first", 0), ("second", 4)]


def test_a_dialogue_that_was_ended_before_a_kill_is_in_the_file_after_the_next_start(tmp_path, finished):
    (tmp_path / "p/dialogues.jsonl").unlink()
    with open_site(finished):
        assert [row["task_description"] for row in lines(tmp_path)] == ["first"]


def test_a_dialogue_with_other_line_separators_is_in_the_file_once(tmp_path, open_world):
    world = open_world(red_team_project(tmp_path, "redteam: {turns: 2, dialogues: 3}"), [Parrot("one")])
    ann = world.person()
    for about in ("first\u2028try", "second\x85try", "third"):
        page = send(ann, "/redteam/say", ann.get("/label").text, text="attack").text
        page = send(ann, "/redteam/choose", page, strength="1").text
        send(ann, "/redteam/end", page, rating="0", about=about)
    rows = (tmp_path / "p/dialogues.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(row)["task_description"] for row in rows] == ["first\u2028try", "second\x85try", "third"]


def test_the_dialogue_is_covered_by_its_warning_and_closed_to_who_opted_out(tmp_path, open_world):
    settings = "warnings: {red_team: insults and threats}\nredteam: {turns: 2, dialogues: 1}"
    world = open_world(red_team_project(tmp_path, settings), [Parrot("one")])
    ann = world.person()
    page = ann.get("/label").text
    assert "insults and threats" in page
    page = send(ann, "/redteam/say", page, text="attack").text
    assert 'id="reveal"' in page
    covered = page[page.index('<div class="warned">') :]
    assert 'class="conversation"' in covered
    assert len(responses(covered)) == 2
    send(ann, "/instructions", ann.get("/instructions").text, **{"without:red_team": "1"})
    for closed in (ann.get("/label"), send(ann, "/redteam/say", page, text="more")):
        assert "Nothing for you here" in closed.text
        assert "insults and threats" in closed.text
        assert "attack" not in closed.text
    send(ann, "/instructions", ann.get("/instructions").text)
    assert field(ann.get("/label").text, "set_id") == field(page, "set_id")


def test_who_waits_when_the_server_ends_is_told_to_come_again(tmp_path, open_world):
    gate = threading.Event()

    class Slow(Parrot):
        def generate(self, conversations, seeds, **_):
            gate.wait()
            return super().generate(conversations, seeds)

    candidates = open_world(red_team_project(tmp_path), [Slow("one")]).site.candidates

    async def end_while_two_wait():
        waiting = [asyncio.ensure_future(candidates.write(Prompt.ask(f"{i}?"), i)) for i in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # as uvicorn does it after its patience
        candidates.closed = True
        gate.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(one) for one in asyncio.run(end_while_two_wait())] == [Busy, Busy]
