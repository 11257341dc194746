"""The label site through its forms: what a browser without JavaScript does, and what somebody does who should not."""

from __future__ import annotations

import html
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
import sqlalchemy as sa
import yaml

from charter.errors import InputError
from charter.raters.comparisons import votes_of
from charter.records import Generation, Judgment, LabelSet, Pair, Prompt, Response
from charter.run.files import write_jsonl
from charter.votes.judgments import current, deciding, seal
from charter.web import tables as t
from charter.web.access import COOKIE, DAY, LABELS, LEADS, ROLES, WATCHES, RateLimit, RequestRefused
from charter.web.answers import relation
from charter.web.lead.pages import figures_of
from charter.web.lead.retrain import Retrain, pairs_of_votes
from charter.web.project import RetrainSettings, open_project
from label_project import HOSTILE, SAME_SITE, field, known, make_project, rank, responses, send, write_table


@pytest.fixture
def world(tmp_path, open_world):
    return open_world(make_project(tmp_path, n=3, overlap=2))


def test_a_rank_a_tie_and_nonsense_become_a_judgment(world):
    ann = world.person()
    page = ann.get("/label").text
    shown = responses(page)
    world.now += 40
    after = send(ann, "/vote", page, **rank(page, 2, 1, "F"), comment="ok", active_s="31.5", first_input_s="nonsense")
    assert "Saved." in after.text
    assert set(responses(after.text)).isdisjoint(shown)
    (one,) = world.judgments()
    assert one.ranks == {shown[0]: 2, shown[1]: 1, shown[2]: "F"}
    assert list(one.order) == shown
    assert one.timings == {"shown": 4_000_000_000.0, "submitted": 4_000_000_040.0, "active_s": 31.5}
    assert (one.rater_id, one.comment, one.rater_kind) == (ann.who, "ok", "human")
    assert one.instructions_hash == world.site.instructions()[0]


PRINCIPLES = {"title": "Two", "principles": [{"id": key, "title": f"Be <{key}>", "preference": "x"} for key in ("kind", "true")]}


def test_principles_that_decided_are_stored_shown_restored_and_counted(tmp_path, open_world):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/two.yaml").write_text(yaml.safe_dump(PRINCIPLES))
    world = open_world(make_project(tmp_path, n=1, k=2, kind="pair", principles="two.yaml", overlap=2))
    ann, bob = world.person(), world.person()
    page = ann.get("/label").text
    assert re.findall(r'name="decided=(\w+)" value="1" data-principle="(\w)"', page) == [("kind", "q"), ("true", "w")]
    assert "Be &lt;kind&gt;" in page
    send(ann, "/vote", page, strength="1", comment="It is kinder.", **{"decided=kind": "1", "decided=never-offered": "1"})
    (first,) = world.judgments()
    assert (first.flags, deciding(first), first.comment) == ({first.set_id: ["decided=kind"]}, ("kind",), "It is kinder.")
    assert votes_of([first]).flags == {}  # marks of a set are no flags of a response
    again = send(ann, "/undo", ann.get("/label").text).text
    assert re.findall(r'name="decided=(\w+)"[^>]* checked', again) == ["kind"]
    send(ann, "/vote", again, strength="1", **{"decided=kind": "1", "decided=true": "1"})
    other = bob.get("/label").text
    send(bob, "/vote", other, strength="8" if responses(other) == responses(again) else "1")
    assert figures_of(world.site).decided == {"kind": 1, "true": 1}
    owner = world.person("owner")
    assert "Principles that decided" in owner.get("/lead").text
    assert "<td>kind, true</td>" in owner.get("/lead/contested").text


def test_a_page_without_principles_asks_for_none(world):
    ann = world.person()
    page = ann.get("/label").text
    assert "decided" not in page.partition("<main")[2]
    send(ann, "/vote", page, **rank(page, 1, 2, 3), **{"decided=kind": "1"})
    assert [one.flags for one in world.judgments()] == [{}]


def test_more_principles_than_keys_are_refused(tmp_path):
    (tmp_path / "p").mkdir()
    many = [{"id": f"p{i}", "title": "t", "preference": "x"} for i in range(16)]
    (tmp_path / "p/many.yaml").write_text(yaml.safe_dump({"title": "Many", "principles": many}))
    with pytest.raises(InputError, match="16 principles, and 15 have a key"):
        make_project(tmp_path, principles="many.yaml")


@pytest.mark.parametrize(
    ("ranks", "words"),
    [((1, 2, ""), "Answer C has no rank"), ((1, 2, 4), "Invalid rank"), ((1, 1, 2), "does not allow ties"),
     ((1, 2, "<b>"), "&lt;b&gt;"), ((1, 2, -1), "Invalid rank")],
)  # fmt: skip
def test_what_cannot_be_meant_is_said_and_what_was_entered_stays(tmp_path, open_world, ranks, words):
    world = open_world(make_project(tmp_path, ties="forbid"))
    ann = world.person()
    page = ann.get("/label").text
    answer = send(ann, "/vote", page, **rank(page, *ranks), comment="my comment")
    assert answer.status_code == 422
    assert words in answer.text
    assert "my comment" in answer.text
    assert not world.judgments()


def test_undo_skip_and_draft(world):
    ann = world.person()
    first = ann.get("/label").text
    send(ann, "/vote", first, **rank(first, 1, 2, 3))
    world.now += 1
    again = send(ann, "/undo", first)
    assert "Taken back" in again.text
    assert field(again.text, "set_id") == field(first, "set_id")
    assert len(re.findall(r"checked", again.text)) == 3
    send(ann, "/draft", first, **rank(first, 3, 3, 3), comment="half a thought")
    assert "half a thought" in ann.get("/label").text
    skipped = send(ann, "/skip", first, reason="knowledge", comment="")
    assert "Skipped." in skipped.text
    assert send(ann, "/skip", skipped.text, reason="because").status_code == 422
    last = current(world.judgments())[-1]
    assert (last.ranks, last.flags) == ({}, {field(first, "set_id"): ["skipped", "knowledge"]})


def test_hostile_text_stays_text(tmp_path, open_world):
    table = tmp_path / "t.jsonl"
    table.write_text(
        json.dumps({"prompt": HOSTILE, "responses": [HOSTILE, "long " * 3000, "\u05e9\u05dc\u05d5\u05dd 你好"]}) + "\n"
    )
    world = open_world(open_project(table))
    page = world.person().get("/label").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<strong>**bold**</strong>" in page
    assert "\u202e" not in page
    assert page.count("⟨U+202E⟩</abbr>txt") == 4  # prompt and answer, plain and with their Markdown
    assert "你好" in page
    assert "Show the other 12,000 characters" in page
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', page)
    assert all(address.startswith(("/", "#")) for address in addresses)
    assert "<img" not in page


def test_every_page_loads_from_this_server_alone_and_names_no_model(tmp_path, open_world):
    rows = [{"prompt": f"P {i}?", "responses": [{"text": f"a{i}", "model": "SECRET-1"}, {"text": f"b{i}", "model": "SECRET-2"}]}
            for i in range(3)]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = open_world(open_project(tmp_path / "t.jsonl"))
    owner = world.person("owner")
    page = owner.get("/label").text
    send(owner, "/vote", page, **rank(page, 1, 2))
    for path, method, _ in routes(world.app):
        if method == "GET" and "{" not in path:
            answer = owner.get(path)
            assert "SECRET" not in answer.text
            assert not re.findall(r'(?:href|src|action)="(?:https?:)?//', answer.text), path
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert not re.search(r"<script(?! type=\"module\" src=\"/static)|<style|\son\w+=|\sstyle=", answer.text), path


# -- who may do what -----------------------------------------------------------------------------------------------------

OPEN_TO_ALL = {("/join/{token}", "GET"), ("/join/{token}", "POST")}


def routes(app):
    """(path, method, roles) of every route; roles None where nobody is asked."""
    for route in app.routes:
        if not hasattr(route, "dependant"):
            assert route.path in ("/static", "/studio-static")
            continue
        checks = [one.call.roles for one in route.dependant.dependencies if hasattr(one.call, "roles")]
        for method in route.methods:
            yield route.path, method, checks[0] if checks else None


def test_a_session_ends_with_its_link(world):
    token, _ = world.site.access.invite("labeler", world.now, days=1.0)
    session = world.site.access.join(token, world.now)
    assert world.site.access.visitor(session, world.now + 0.9 * DAY) is not None
    assert world.site.access.visitor(session, world.now + 1.1 * DAY) is None


@pytest.mark.parametrize("who", ["stranger", "forged", "expired", "revoked", *ROLES])
def test_every_route_is_for_its_roles_alone(world, who):
    client = world.stranger()
    if who in ROLES:
        client = world.person(who)
    elif who == "forged":
        client.cookies.set(COOKIE, "x" * 43)
    elif who == "expired":
        client = world.person("owner")
        world.now += 31 * DAY
    elif who == "revoked":
        client = world.person("owner")
        world.site.access.revoke(int(world_invite(world, client.who)))
    client.follow_redirects = False
    seen = set()
    for path, method, roles in routes(world.app):
        if roles is None:
            assert (path, method) in OPEN_TO_ALL
            continue
        seen.add((path, method))
        if path == "/leave" and who in roles:
            continue  # would end the session that the others are asked with
        world.site.limit.buckets.clear()
        world.site.door.buckets.clear()
        if who in ROLES:
            page = client.get("/instructions" if who != "viewer" else "/lead").text
            form = {"form_token": field(page, "form_token")}
        else:
            form = {}
        answer = client.request(method, path, data=form if method == "POST" else None, headers=SAME_SITE)
        if who not in ROLES:
            assert answer.status_code == 401, (path, method)
        elif who not in roles:
            assert answer.status_code == 403, (path, method)
            assert "is not for the role" in answer.text
        else:
            assert "is not for the role" not in answer.text
    assert len(seen) >= 25


def world_invite(world, who):
    with world.site.store.read() as db:
        return db.scalar(sa.select(t.invites.c.id).where(t.invites.c.rater_id == who))


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "null"}],
    ids=str,
)
def test_no_form_is_accepted_from_another_site(world, headers):
    owner = world.person("owner")
    token = field(owner.get("/lead").text, "form_token")
    for path, method, _ in routes(world.app):
        if method == "POST":
            answer = owner.post(path.replace("{token}", owner.link[6:]), data={"form_token": token}, headers=headers)
            assert answer.status_code == 403, path
            assert "another site" in answer.text


def test_no_form_is_accepted_without_the_token_of_its_session(world):
    owner, other = world.person("owner"), world.person("owner")
    for token in ("", "x", field(other.get("/lead").text, "form_token")):
        for path, method, roles in routes(world.app):
            if method == "POST" and roles is not None:
                assert owner.post(path, data={"form_token": token}, headers=SAME_SITE).status_code == 403, path


def test_links_end_with_their_time_and_when_they_are_revoked(world):
    owner, ann = world.person("owner"), world.person()
    people = owner.get("/lead/people").text
    send(owner, "/lead/revoke", people, id=str(world_invite(world, ann.who)))
    assert ann.get("/label").status_code == 401
    assert world.stranger().post(ann.link).status_code == 403
    made = send(owner, "/lead/invite", people, role="labeler", days="2").text
    link = html.unescape(re.search(r'value="http://127.0.0.1(/join/[^"]+)"', made)[1])
    assert world.stranger().get(link).status_code == 200
    world.now += 2 * DAY
    assert world.stranger().post(link).status_code == 403
    assert world.stranger().get("/join/nonsense").status_code == 403
    with world.site.store.read() as db:
        stored = repr(db.execute(sa.select(t.invites)).all()) + repr(db.execute(sa.select(t.sessions)).all())
    assert link[6:] not in stored
    assert ann.link[6:] not in stored


def test_a_lead_cannot_make_leads_or_revoke_them(world):
    lead, other = world.person("lead"), world.person("lead")
    page = lead.get("/lead/people").text
    assert send(lead, "/lead/invite", page, role="lead", days="2").status_code == 403
    assert send(lead, "/lead/invite", page, role="owner", days="2").status_code == 403
    assert send(lead, "/lead/revoke", page, id=str(world_invite(world, other.who))).status_code == 403
    assert send(lead, "/lead/invite", page, role="labeler", days="x").status_code == 422


@pytest.mark.parametrize("digits", [25, 5000])
def test_a_number_that_no_database_holds_is_refused_in_words(world, digits):
    owner = world.person("owner")
    page = owner.get("/lead/people").text
    assert send(owner, "/lead/revoke", page, id="9" * digits).status_code == 403
    assert send(owner, "/lead/invite", page, role="labeler", days="9" * digits).status_code == 422


def test_a_new_link_takes_the_place_of_what_a_person_had(world):
    owner, ann = world.person("owner"), world.person()
    page = ann.get("/label").text
    send(ann, "/vote", page, **rank(page, 1, 2, 3))
    world.now += 15 * DAY  # the link ran out
    assert ann.get("/label").status_code == 401
    made = send(owner, "/lead/renew", owner.get("/lead/people").text, who=ann.who).text
    assert f"The link for <strong>{ann.who}</strong>" in made
    new = world.stranger()
    new.post(html.unescape(re.search(r'value="http://127.0.0.1(/join/[^"]+)"', made)[1]))
    again = new.get("/label").text
    assert f"<strong>{ann.who}</strong> (labeler)" in again
    assert field(again, "set_id") != field(page, "set_id")
    assert [one.rater_id for one in world.judgments()] == [ann.who]
    send(owner, "/lead/renew", owner.get("/lead/people").text, who=ann.who)
    assert new.get("/label").status_code == 401
    assert world.stranger().post(ann.link).status_code == 403
    with world.site.store.read() as db:
        rows = db.execute(sa.select(t.invites).where(t.invites.c.rater_id == ann.who)).all()
    assert [(row.role, row.revoked, row.expires - row.created) for row in rows] == [
        ("labeler", True, 14 * DAY), ("labeler", True, 14 * DAY), ("labeler", False, 14 * DAY)
    ]  # fmt: skip


def test_nobody_renews_the_link_of_somebody_they_may_not_invite(world):
    owner, lead, other = world.person("owner"), world.person("lead"), world.person("lead")
    page = lead.get("/lead/people").text
    for who in (other.who, lead.who, owner.who, "nobody", ""):
        assert send(lead, "/lead/renew", page, who=who).status_code == 403
    page = owner.get("/lead/people").text
    assert send(owner, "/lead/renew", page, who=owner.who).status_code == 403
    assert send(owner, "/lead/renew", page, who=lead.who).status_code == 200
    assert lead.get("/lead").status_code == 401
    assert other.get("/lead").status_code == 200


def test_signing_out_everywhere_else_ends_the_other_sessions_of_one_person(world):
    ann, bob = world.person(), world.person()
    phone = world.stranger()
    assert phone.post(ann.link).status_code == 200
    send(ann, "/leave-elsewhere", ann.get("/label").text)
    assert phone.get("/label").status_code == 401
    assert ann.get("/label").status_code == bob.get("/label").status_code == 200
    assert phone.post(ann.link).status_code == 200  # a labeler's link is for all their devices


def test_an_owner_who_signs_out_everywhere_else_ends_the_links_that_were_printed(world):
    tokens = [world.site.access.owner_link(world.now, days=1.0) for _ in range(2)]
    here, there = world.stranger(), world.stranger()
    assert here.post(f"/join/{tokens[0]}").status_code == there.post(f"/join/{tokens[1]}").status_code == 200
    send(here, "/leave-elsewhere", here.get("/lead").text)
    assert there.get("/lead").status_code == 401
    assert [world.stranger().post(f"/join/{token}").status_code for token in tokens] == [403, 403]
    assert here.get("/lead").status_code == 200
    assert world.stranger().post(f"/join/{world.site.access.owner_link(world.now, days=1.0)}").status_code == 200


def test_a_vote_on_a_set_of_somebody_else_is_refused(tmp_path, open_world):
    world = open_world(make_project(tmp_path, n=3))
    ann, bob = world.person(), world.person()
    page, other = ann.get("/label").text, bob.get("/label").text
    assert field(page, "set_id") != field(other, "set_id")
    stolen = {"form_token": field(other, "form_token"), "set_id": field(page, "set_id")} | rank(page, 1, 2, 3)
    for path in ("/vote", "/skip", "/draft"):
        assert bob.post(path, data=stolen, headers=SAME_SITE).status_code == 403
    assert not world.judgments()


def test_the_server_goes_by_its_name_alone_and_takes_no_large_bodies(world):
    client = world.stranger()
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/", headers={"host": "localhost:9"}).status_code == 401
    owner = world.person("owner")
    assert owner.post("/lead/instructions", data={"text": "x" * 2**20}).status_code == 413
    assert client.get("/static/../site.py").status_code == 404
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_a_bucket_empties_and_fills_again():
    limit = RateLimit(per_second=2, burst=3)
    for _ in range(3):
        limit.check("a", 0.0)
    with pytest.raises(RequestRefused) as error:
        limit.check("a", 0.1)
    assert error.value.status == 429
    limit.check("b", 0.1)
    limit.check("a", 0.6)


# -- instructions, practice, quiz ----------------------------------------------------------------------------------------


def test_changed_instructions_are_read_again_and_votes_keep_their_version(world):
    owner, ann = world.person("owner"), world.person()
    page = ann.get("/label").text
    send(ann, "/vote", page, **rank(page, 1, 2, 3))
    world.now += 1
    send(owner, "/lead/instructions", owner.get("/lead/instructions").text, text="# New\n\nBe **kind**.\n")
    page = ann.get("/label").text
    assert "The instructions have changed" in page
    assert "<strong>kind</strong>" in page
    page = send(ann, "/instructions", page).text
    send(ann, "/vote", page, **rank(page, 1, 2, 3))
    first, second = (one.instructions_hash for one in world.judgments())
    assert first != second
    versions = owner.get("/lead/instructions").text
    assert first[:8] in versions
    assert second[:8] in versions
    assert "+Be **kind**." in versions


def test_practice_gives_feedback_and_the_quiz_opens_the_door(tmp_path, open_world):
    (tmp_path / "p").mkdir()
    known(tmp_path / "p/practice.jsonl", 1, [1, 2, "F"], "Practice")
    known(tmp_path / "p/quiz.jsonl", 2, [2, 1, 3], "Quiz")
    world = open_world(make_project(tmp_path, practice="practice.jsonl", quiz="quiz.jsonl"))
    owner, ann = world.person("owner"), world.person()
    page = ann.get("/label").text
    assert "Practice 0?" in page
    feedback = send(ann, "/practice", page, **rank(page, 1, 1, 1)).text
    assert "Because of 0." in feedback
    for _ in range(2):  # all wrong
        page = ann.get("/label").text
        assert "Quiz" in page
        result = send(ann, "/quiz", page, **rank(page, 1, 1, 1))
    assert "Not passed" in result.text
    assert "Not passed" in ann.get("/label").text
    send(owner, "/lead/quiz-again", owner.get("/lead/people").text, who=ann.who)
    for _ in range(2):
        page = ann.get("/label").text
        gold = world.site.store.parts(field(page, "set_id"))[0].gold
        result = send(ann, "/quiz", page, **{f"rank:{key}": str(gold[key]) for key in responses(page)})
    assert "Passed" in result.text
    assert "Question" in ann.get("/label").text
    assert not world.judgments()


def test_warned_texts_are_covered_and_can_be_left_to_others(tmp_path, open_world):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text(yaml.safe_dump({"warnings": {"violence": "violence"}, "overlap": 2}))
    world = open_world(open_project(write_table(tmp_path / "t.jsonl", 1, tags=["violence"]), tmp_path / "p"))
    page = world.person().get("/label").text
    assert "Content warning:" in page
    assert 'id="reveal"' in page
    bob = world.person(read=False)
    send(bob, "/instructions", bob.get("/instructions").text, **{"without:violence": "1"})
    assert "nothing left for you" in bob.get("/label").text


def test_an_opt_out_gives_the_held_set_to_somebody_else(tmp_path, open_world):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text(yaml.safe_dump({"warnings": {"violence": "violence"}}))
    world = open_world(open_project(write_table(tmp_path / "t.jsonl", 1, tags=["violence"]), tmp_path / "p"))
    ann, bob = world.person(), world.person()
    held = field(ann.get("/label").text, "set_id")
    assert "nothing left for you" in bob.get("/label").text
    ann.follow_redirects = False
    send(ann, "/instructions", ann.get("/instructions").text, **{"without:violence": "1"})
    assert field(bob.get("/label").text, "set_id") == held


def test_lessons_leave_out_what_a_person_does_not_want_to_see(tmp_path, open_world):
    (tmp_path / "p").mkdir()
    for name, tags in (("practice", [["violence"]]), ("quiz", [["violence"], [], ["violence"]])):
        file = known(tmp_path / f"p/{name}.jsonl", len(tags), [2, 1, 3], name)
        rows = [json.loads(line) | {"tags": own} for line, own in zip(file.read_text().splitlines(), tags, strict=True)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"practice": "practice.jsonl", "quiz": "quiz.jsonl", "warnings": {"violence": "fights"}}
    world = open_world(make_project(tmp_path, **settings))
    ann, bob = world.person(read=False), world.person()
    page = send(ann, "/instructions", ann.get("/instructions").text, **{"without:violence": "1"}).text
    assert "quiz 1?" in page
    gold = world.site.store.parts(field(page, "set_id"))[0].gold
    right = {f"rank:{key}": str(gold[key]) for key in responses(page)}
    assert "Passed" in send(ann, "/quiz", page, **right).text
    assert "Question" in ann.get("/label").text
    page = bob.get("/label").text
    assert "practice 0?" in page
    assert "fights" in page
    send(bob, "/practice", page, **rank(page, 1, 2, 3))
    page = bob.get("/label").text
    assert "quiz 0?" in page
    send(bob, "/quiz", page, **rank(page, 1, 1, 1))  # all wrong, and what was answered counts
    page = bob.get("/label").text
    gold = world.site.store.parts(field(page, "set_id"))[0].gold
    assert "quiz 1?" in page
    send(bob, "/quiz", page, **{f"rank:{key}": str(gold[key]) for key in responses(page)})
    after = send(bob, "/instructions", bob.get("/instructions").text, **{"without:violence": "1"})
    assert "Not passed" in after.text


def test_nobody_passes_a_test_by_opting_out_of_all_of_it(tmp_path, open_world):
    (tmp_path / "p").mkdir()
    file = known(tmp_path / "p/quiz.jsonl", 1, [2, 1, 3])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tags": ["violence"]}) + "\n")
    world = open_world(make_project(tmp_path, quiz="quiz.jsonl", warnings={"violence": "fights"}))
    ann = world.person(read=False)
    page = send(ann, "/instructions", ann.get("/instructions").text, **{"without:violence": "1"}).text
    assert "A test that you cannot take" in page
    assert "fights" in page
    assert "Known" not in page
    page = send(ann, "/instructions", ann.get("/instructions").text).text
    assert "Known 0?" in page


# -- the other kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fields", "ranks", "strength"),
    [
        ({}, {"strength": "1"}, (1, 2), 4),
        ({}, {"strength": "4"}, (1, 2), 1),
        ({}, {"strength": "8"}, (2, 1), -4),
        ({}, {"F": 0}, ("F", 1), None),
        ({}, {"F": 0, "F2": 1}, ("F", "F"), None),
        ({"strength": False}, {"strength": "8"}, (2, 1), None),
        ({"strength": False}, {"strength": "tie"}, (1, 1), None),
        ({}, {"strength": "tie"}, None, None),
        ({}, {"strength": "9"}, None, None),
        ({}, {}, None, None),
    ],
)
def test_pairs_are_forced_choices_with_a_strength(tmp_path, open_world, settings, fields, ranks, strength):
    world = open_world(make_project(tmp_path, kind="pair", k=2, **settings))
    ann = world.person()
    page = ann.get("/label").text
    a, b = responses(page)
    form = {f"rank:{(a, b)[value]}" if key[0] == "F" else key: "F" if key[0] == "F" else value
            for key, value in fields.items()}  # fmt: skip
    answer = send(ann, "/vote", page, **form)
    if ranks is None:
        assert answer.status_code == 422
        return
    (one,) = world.judgments()
    assert (one.ranks, one.strength) == ({a: ranks[0], b: ranks[1]}, strength)


@pytest.mark.parametrize("choice", ["1", "tie", "8"])
def test_a_choice_without_strength_that_is_taken_back_is_filled_in(tmp_path, open_world, choice):
    world = open_world(make_project(tmp_path, n=1, k=2, kind="pair", strength=False))
    ann = world.person()
    send(ann, "/vote", ann.get("/label").text, strength=choice)
    again = send(ann, "/undo", ann.get("/label").text).text
    assert re.findall(r'name="strength" value="(\w*)" checked', again) == [choice]


def test_three_responses_make_three_pairs(tmp_path):
    assert len(make_project(tmp_path, n=2, k=3, kind="pair").items.sets) == 6


@pytest.mark.parametrize(
    ("form", "rank_given", "edit"),
    [({"edit": "Better."}, 2, "Better."), ({"rank": "1"}, 1, None), ({"rank": "F"}, "F", None),
     ({"rank": "F", "edit": "Better."}, "F", "Better."), ({}, None, None), ({"edit": " "}, None, None)],
)  # fmt: skip
def test_an_edit_keeps_the_rewrite_beside_the_original(tmp_path, open_world, form, rank_given, edit):
    world = open_world(make_project(tmp_path, kind="edit", n=1, k=1))
    ann = world.person()
    page = ann.get("/label").text
    (key,) = responses(page)
    text = world.site.store.parts(field(page, "set_id"))[2][key].text
    fields = {f"edit:{key}": form.get("edit", text)} | ({f"rank:{key}": form["rank"]} if "rank" in form else {})
    answer = send(ann, "/vote", page, **fields)
    if rank_given is None:
        assert answer.status_code == 422
        return
    (one,) = world.judgments()
    assert one.ranks == {key: rank_given}
    assert one.edit == ({key: edit} if edit else {})


@pytest.mark.parametrize("text", ["One.\r\nTwo.", "\u202eOne.", "One\x07.", "\nOne.", "One.\rTwo.", " One. "])
def test_a_rewrite_that_nobody_touched_is_none(tmp_path, open_world, text):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text("kind: edit\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "Q?", "responses": [text]}) + "\n")
    world = open_world(open_project(tmp_path / "t.jsonl", tmp_path / "p"))
    ann = world.person()
    page = ann.get("/label").text
    (key,) = responses(page)
    shown = as_a_browser_sends_it(page)
    assert send(ann, "/vote", page, **{f"edit:{key}": shown}).status_code == 422
    assert not world.judgments()
    send(ann, "/vote", page, **{f"edit:{key}": shown + "!"})
    (one,) = world.judgments()
    assert one.edit[key] == re.sub("\r\n|\r", "\n", text) + "!"


def as_a_browser_sends_it(page: str) -> str:
    """The rewrite as the page has it: by the rules of HTML every line end is read as LF and sent as CRLF, and one at the start is
    dropped."""
    text = html.unescape(
        re.search(r"<textarea[^>]*data-key=.e.[^>]*>(.*?)</textarea>", page.replace("\r\n", "\n").replace("\r", "\n"), re.S)[1]
    )
    return re.sub("\r\n|\r|\n", "\r\n", text.removeprefix("\n"))


def test_thumbs(tmp_path, open_world):
    world = open_world(make_project(tmp_path, kind="thumbs", n=1, k=2))
    ann = world.person()
    for given in ("1", "F"):
        page = ann.get("/label").text
        assert send(ann, "/vote", page).status_code == 422
        send(ann, "/vote", page, **rank(page, given))
    assert [list(one.ranks.values()) for one in world.judgments()] == [[1], ["F"]]


# -- what the lead sees --------------------------------------------------------------------------------------------------


def test_the_lead_sees_agreement_raters_and_contested_sets(world):
    lead, ann, bob = world.person("lead", read=False), world.person(), world.person()
    for who, order in ((ann, 1), (bob, -1)):
        for _ in range(3):
            page = who.get("/label").text
            keys = sorted(responses(page))
            ranks = dict(zip(keys, (1, 2, 3)[::order], strict=True))
            send(who, "/vote", page, **{f"rank:{key}": str(value) for key, value in ranks.items()}, active_s="12")
    world.site.cached.clear()  # figures are kept for some seconds
    page = lead.get("/lead").text
    assert re.search(r"Agreement</dt><dd>0 % <small>of 9</small>", page)
    assert re.search(r"pair agreement</th><td>0.000</td>.*?<td>9 pairs of votes, 3 prompts</td>", page, re.S)
    assert ann.who in page
    assert "3 sets on which people contradict" in lead.get("/lead/contested").text
    rows = lead.get("/lead/raters.csv").text.splitlines()
    assert rows[0].startswith("rater,votes,skips")
    assert len(rows) == 3


def test_agreement_is_one_figure_wherever_it_stands(tmp_path, open_world):
    world = open_world(make_project(tmp_path, n=4, k=4, overlap=3))
    people = [world.person() for _ in range(3)]
    for number, ranks in enumerate([(1, 2, 3, 4), (1, 1, 2, "F"), (2, 1, "F", "F")]):
        for _ in range(3 + number % 2):
            page = people[number].get("/label").text
            keys = sorted(responses(page))
            send(people[number], "/vote", page, **{f"rank:{key}": str(one) for key, one in zip(keys, ranks, strict=True)})
    figures = figures_of(world.site)
    votes = world.judgments()
    by_hand = [
        relation(one.ranks, a, b) == relation(other.ranks, a, b)
        for one, other in combinations(votes, 2) if one.set_id == other.set_id
        for a, b in combinations(one.order, 2)
        if None not in (relation(one.ranks, a, b), relation(other.ranks, a, b))
    ]  # fmt: skip
    (measured,) = [one for one in figures.measured if one.name == "pair agreement"]
    assert figures.agreement is measured
    assert (measured.n, measured.value) == (len(by_hand), pytest.approx(sum(by_hand) / len(by_hand)))
    tile = f"Agreement</dt><dd>{100 * measured.value:.0f} % <small>of {measured.n}</small>"
    assert tile in world.person("viewer").get("/lead").text


@pytest.mark.parametrize(("repeated_best", "share"), [("first", 1.0), ("second", 0.0)])
def test_a_repeat_of_a_partial_ranking_counts_the_responses_that_it_left_out(tmp_path, open_world, repeated_best, share):
    world = open_world(make_project(tmp_path, n=20, k=2, partial=True, repeat_share=0.5))
    ann = world.person()
    while 'name="set_id"' in (page := ann.get("/label").text):
        first, second = sorted(responses(page))
        repeats = world.site.store.parts(field(page, "set_id"))[0].role == "repeat"
        send(ann, "/vote", page, **{f"rank:{second if repeats and repeated_best == 'second' else first}": "1"})
    (row,) = figures_of(world.site).raters
    assert row.repeats.n
    assert row.repeats.share == share


def test_agreement_on_single_answers_is_counted_by_the_mark(tmp_path, open_world):
    world = open_world(make_project(tmp_path, kind="thumbs", n=4, k=1, overlap=2))
    for given in (("1", "1", "1", "1"), ("1", "1", "1", "F")):
        who = world.person()
        for one in given:
            page = who.get("/label").text
            send(who, "/vote", page, **rank(page, one))
    figure = figures_of(world.site).agreement
    assert (figure.value, figure.n) == (0.75, 4)
    assert figures_of(world.site).without_ties is None


def test_labelers_never_see_the_votes_of_others(world):
    ann, bob = world.person(), world.person()
    page = ann.get("/label").text
    send(ann, "/vote", page, **rank(page, 1, 2, 3), comment="ann was here")
    for _ in range(3):
        page = bob.get("/label").text
        assert "ann was here" not in page
        assert ann.who not in page
        send(bob, "/vote", page, **rank(page, 1, 2, 3))


def test_the_page_trains_a_reward_model_and_shows_its_curve(tmp_path, open_world, random_llama):
    retrain = {"model": str(random_llama), "epochs": 1}
    world = open_world(make_project(tmp_path, n=16, k=2, kind="pair", retrain=retrain))
    owner, ann = world.person("owner", read=False), world.person()
    page = owner.get("/lead/model").text
    assert "a training needs at least 8" in send(owner, "/lead/train", page).text
    for number in range(16):
        page = ann.get("/label").text
        send(ann, "/vote", page, strength=str(1 + number % 4))  # the weakest notch trains nothing
    world.site.cached.clear()
    send(owner, "/lead/train", owner.get("/lead/model").text)
    assert "is running; wait" in send(owner, "/lead/train", owner.get("/lead/model").text).text
    world.site.retrain.thread.join()
    page = owner.get("/lead/model").text
    assert "Training 001: done" in page
    assert page.count("<circle") == 3
    result = json.loads((tmp_path / "p/retrain/001/result.json").read_text())
    assert result["pairs"] == 12
    assert [point["n_test"] for point in result["points"]] == [result["test_pairs"]] * 3
    assert set(result["points"][-1]["by_margin"]) <= {"1.00", "0.67", "0.33"}


def test_two_who_press_the_button_at_once_start_one_training(tmp_path, random_llama):
    prompts = [Prompt.ask(f"Q {i}?") for i in range(12)]
    pairs = [Pair(prompt=one, chosen="a", rejected="b", group_id=one.id) for one in prompts]
    training = Retrain(tmp_path, RetrainSettings(model=str(random_llama)))
    together = threading.Barrier(4)

    def press() -> str:
        together.wait()
        try:
            training.start(pairs, {})
        except InputError as error:
            return str(error)
        return "started"

    with ThreadPoolExecutor(4) as people:
        said = [one.result() for one in [people.submit(press) for _ in range(4)]]
    training.close()
    assert sorted(said) == ["a training is running; wait until it ends"] * 3 + ["started"]
    ((one, state),) = [(run["name"], run["state"]) for run in training.runs()]
    assert (one, state) == ("001", "cut off")


@pytest.mark.parametrize(
    ("ranks", "direction", "edit", "expected"),
    [
        ({"a": 2, "b": 1, "c": 3}, "better", {}, {("b", "a"), ("a", "c"), ("b", "c")}),
        ({"a": 2, "b": 1, "c": 3}, "more_harmful", {}, {("a", "b"), ("c", "a"), ("c", "b")}),
        ({"a": 1, "b": "F", "c": "F"}, "better", {}, {("a", "b"), ("a", "c")}),
        ({"a": 1, "b": 1}, "better", {}, {("a", "c"), ("b", "c")}),
        ({"a": 2}, "better", {"a": "new"}, {("new", "a")}),
    ],
)
def test_votes_become_pairs(tmp_path, ranks, direction, edit, expected):
    order = ("a",) if edit else ("a", "b", "c")
    prompt = Prompt.ask("?")
    kind = "edit" if edit else "rank"
    asked = LabelSet(prompt_id=prompt.id, kind=kind, response_ids=order, direction=direction)
    one = Judgment(id="1", set_id=asked.id, prompt_id=prompt.id, rater_id="ann", rater_kind="human", order=order, ranks=ranks,
                   direction=direction, edit=edit)  # fmt: skip
    texts = [Response(id=key, prompt_id=prompt.id, model="m", text=key, finish_reason="stop",
                      generation=Generation(seed=0, temperature=0.0)) for key in order]  # fmt: skip
    for name, records in (("prompts", [prompt]), ("responses", texts), ("sets", [asked]), ("judgments", [seal(one, "")])):
        write_jsonl(tmp_path / f"{name}.jsonl", records)
    pairs = pairs_of_votes(tmp_path / "judgments.jsonl")
    assert {(pair.chosen, pair.rejected) for pair in pairs} == expected
    assert {pair.group_id for pair in pairs} == {prompt.id}


def test_the_roles_of_the_pages_are_what_the_docs_say():
    assert {"owner", "lead", "labeler"} == LABELS
    assert {"owner", "lead", "viewer"} == WATCHES
    assert {"owner", "lead"} == LEADS
