"""The studio: runs read while they grow, who may see what, and its pages in a real browser."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from charter.commands.app import run_command
from charter.constitution.constitution import load_constitution, save_constitution
from charter.judging.judge import comparisons_of
from charter.reading.pairs import read_pairs
from charter.studio import runs as studio_runs
from charter.studio.curves import BUCKETS, Curve
from charter.studio.flips import judged_again, labels_of, what_would_change
from charter.studio.jobs import Jobs
from charter.studio.run_pages import events
from charter.studio.runs import RunWatch, Tail, find_runs, last_rows, locked_inodes, wanted_rows
from charter.studio.serve import project_of, studio_app
from charter.studio.site import Studio
from charter.studio.tester_pages import write_test
from charter.votes.judgments import read_judgments
from charter.web.access import COOKIE, ROLES
from charter.web.serve import open_site
from conftest import write_tiny_recipe
from label_project import HOME, HOSTILE, SAME_SITE
from test_label_app import OPEN_TO_ALL, routes

QUERY = {"run": "demo", "a": "demo", "b": "demo", "name": "001"}


def write_rows(path, rows, how="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, how) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def step(number, **values):
    row = {"step": number, "reward": number / 10, "kl": 0.1, "entropy": 2.0, "response_tokens": 20.0, "missing_eos": 0.0}
    return row | values


def write_run(folder, steps=4, total=20, *, finished=False):
    """A run in its RL stage, by hand."""
    (folder / "prompts").mkdir(parents=True)
    counts = {"train red_team": 30, "train benign": 10}
    gate = {"name": "usable", "stage": "revise", "passed": False, "overridden": True, "message": HOSTILE}
    for name, result in (("prompts", {"counts": counts}), ("revise", {"gates": [gate]})):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "manifest.json").write_text(json.dumps({"fingerprint": "f", "settings": {}, "result": result}))
    write_rows(folder / "rl/metrics.jsonl", [step(i) for i in range(steps)])
    write_rows(folder / "rl/rollouts.jsonl", [{"step": i, "prompt": f"Q{i}", "response": HOSTILE, "reward": 1.0, "kl": 0.0}
                                             for i in range(steps)])  # fmt: skip
    manifest = {"fingerprint": "f", "settings": {"steps": total}} | ({"result": {"gates": []}} if finished else {})
    (folder / ".lock").touch()
    (folder / "rl/manifest.json").write_text(json.dumps(manifest))
    return folder


def opened(root, **more):
    return open_site(project_of(root), kind=partial(Studio, root=root), **more)


# -- reading what grows ----------------------------------------------------------------------------------------------------


def test_a_curve_of_any_length_has_few_points_and_keeps_mean_and_extremes():
    curve, values = Curve(), [float((7919 * i) % 1000) for i in range(20_000)]
    for number, value in enumerate(values):
        curve.add(number, value)
    assert len(curve.buckets) <= BUCKETS
    assert sum(bucket.n for bucket in curve.buckets) == 20_000
    assert sum(bucket.total for bucket in curve.buckets) == sum(values)
    assert (curve.buckets[0].first, curve.buckets[-1].last) == (0, 19_999)
    assert all(a.last + 1 == b.first for a, b in zip(curve.buckets, curve.buckets[1:], strict=False))
    picture = curve.picture()
    assert (picture["low"], picture["high"]) == (min(values), max(values))
    curve.add(20_000, float("nan"))
    assert curve.buckets[-1].last == 19_999


def test_a_short_curve_is_the_values_themselves():
    curve = Curve()
    for number, value in enumerate((1.0, 3.0, 2.0)):
        curve.add(number, value)
    assert curve.picture()["line"] == "58.0,146.0 263.0,10.0 468.0,78.0"
    assert curve.picture()["band"] == ""


def test_a_tail_gives_whole_lines_once_and_notices_a_file_that_was_replaced(tmp_path):
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    assert tail.lines() == []
    file.write_bytes(b"1\n2\n3")
    assert tail.lines() == [b"1", b"2"]
    with open(file, "ab") as more:
        more.write(b"3\n")
    assert tail.lines() == [b"33"]
    assert tail.lines() == []
    (tmp_path / "new").write_bytes(b"1\n2\n33\n4\n")
    (tmp_path / "new").replace(file)
    assert tail.lines() == [b"1", b"2", b"33", b"4"]
    assert tail.anew


def test_a_look_reads_a_bounded_part(tmp_path, monkeypatch):
    monkeypatch.setattr(studio_runs, "MOST_READ", 100)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(b"%09d\n" % i for i in range(50)))
    tail, seen = Tail(file), []
    while lines := tail.lines():
        assert len(lines) <= 10
        seen += lines
    assert [int(line) for line in seen] == list(range(50))


def test_the_newest_rows_come_from_the_end_of_the_file_alone(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"n": i, "text": "x" * 1000} for i in range(500)])
    assert [row["n"] for row in last_rows(tmp_path / "rows.jsonl", 3)] == [499, 498, 497]
    assert last_rows(tmp_path / "missing.jsonl", 3) == []


def test_a_run_is_live_while_a_process_holds_its_lock_and_nothing_is_locked_to_find_out(tmp_path):
    folder = write_run(tmp_path / "demo")
    watch = RunWatch(folder)
    watch.look(locked_inodes())
    assert (watch.state, watch.at_work) == ("interrupted", None)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        watch.look(locked_inodes())
        assert (watch.state, watch.at_work.name, watch.at_work.done, watch.at_work.total) == ("live", "rl", 4, 20)
        write_rows(folder / "rl/metrics.jsonl", [step(i) for i in range(4, 9)], "a")
        watch.look(locked_inodes())
        assert watch.at_work.done == 9
        assert watch.at_work.time_left.endswith(" left")
        assert [panel["name"] for panel in watch.panels()] == ["reward", "kl", "entropy", "response_tokens"]
        write_rows(folder / "new", [step(i) for i in range(2)])  # a resumed run rewinds its log
        write_rows(folder / "new", [step(2) | {"reward_by_principle/peace": 0.5}], "a")
        (folder / "new").replace(folder / "rl/metrics.jsonl")
        watch.look(locked_inodes())
        assert (watch.at_work.done, watch.panels()[0]["last"]) == (3, 2)
        assert [panel["title"] for panel in watch.panels()][-1] == "Reward, peace"
    watch.look(locked_inodes())
    assert watch.state == "interrupted"


def test_alarms_of_a_live_run_come_from_its_log(tmp_path):
    folder = write_run(tmp_path / "demo", steps=0)
    write_rows(folder / "rl/metrics.jsonl", [step(i, missing_eos=0.5) for i in range(10)])
    watch = RunWatch(folder)
    watch.look(locked_inodes())
    assert [alarm["detector"] for alarm in watch.alarms] == ["missing EOS"]


def test_alarms_of_a_live_run_come_from_each_of_its_rounds(tmp_path):
    folder = write_run(tmp_path / "demo", steps=0)
    write_rows(folder / "rl/metrics.jsonl", [step(i) for i in range(10)])
    shutil.copytree(folder / "rl", folder / "rl-2")
    write_rows(folder / "rl-2/metrics.jsonl", [step(i, missing_eos=0.5) for i in range(10)])
    watch = RunWatch(folder)
    watch.look(locked_inodes())
    assert [alarm["detector"] for alarm in watch.alarms] == ["missing EOS"]


def test_the_rows_that_a_stage_will_write():
    counts = {"train red_team": 300, "train benign": 500}
    assert wanted_rows("revise", "originals.jsonl", {"prompts": 400, "rounds": 3}, counts) == 300
    assert wanted_rows("revise", "revisions.jsonl", {"prompts": 100, "rounds": 3}, counts) == 300
    feedback = {"prompts": 1600, "responses_per_prompt": 3}
    assert wanted_rows("feedback", "responses.jsonl", feedback, counts) == 2400
    assert wanted_rows("feedback", "judgments.jsonl", feedback, counts) == 2400
    assert wanted_rows("evaluate", "responses.*.jsonl", {}, counts) is None


def test_runs_are_searched_for_two_folders_deep(tmp_path):
    for place in ("a", "b/c", "b/d/e", ".hidden/f"):
        write_run(tmp_path / place)
    (tmp_path / "empty/rl").mkdir(parents=True)
    assert sorted(find_runs(tmp_path)) == ["a", "b/c"]
    assert list(find_runs(tmp_path / "a")) == ["."]


# -- who may do what -------------------------------------------------------------------------------------------------------


@pytest.fixture
def studio(tmp_path):
    write_run(tmp_path / "demo")
    (tmp_path / "demo/report.json").write_text(json.dumps({"title": HOSTILE, "verdict": {"word": "no evidence"}}))
    (tmp_path / "demo/report.html").write_text("<p>The report</p>")
    with opened(tmp_path) as site:
        site.app = studio_app(site)
        yield site


def person(site, role):
    client = TestClient(site.app, base_url=HOME, follow_redirects=False)
    token, _ = site.access.invite(role, site.clock())
    client.cookies.set(COOKIE, site.access.join(token, site.clock()))
    return client


@pytest.mark.parametrize("who", ["stranger", "forged", *ROLES])
def test_every_route_is_for_its_roles_alone(studio, who):
    client = person(studio, who) if who in ROLES else TestClient(studio.app, base_url=HOME, follow_redirects=False)
    if who == "forged":
        client.cookies.set(COOKIE, "x" * 43)
    studio.candidates.closed = True  # streams of events end at once
    seen = 0
    for path, method, roles in routes(studio.app):
        if roles is None:
            assert (path, method) in OPEN_TO_ALL
            continue
        seen += 1
        studio.limit.buckets.clear()
        answer = client.request(method, path, params=QUERY if method == "GET" else None, headers=SAME_SITE)
        if who not in ROLES:
            assert answer.status_code == 401, path
        elif who not in roles:
            assert answer.status_code == 403, path
            assert "is not for the role" in answer.text
        else:
            assert "is not for the role" not in answer.text
            assert answer.status_code < 500, path
    assert seen == 29
    assert client.get("/runs", headers={"host": "evil.example"}).status_code == 421


def test_text_of_a_run_reaches_the_page_as_text(studio):
    client = person(studio, "owner")
    for page in (client.get("/runs"), client.get("/run", params={"run": "demo"})):
        assert page.status_code == 200
        assert "<script>alert(1)</script>" not in page.text
        assert "&lt;script&gt;alert(1)" in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]


def test_only_runs_that_were_searched_for_can_be_asked_about(studio, tmp_path):
    write_run(tmp_path.with_name("elsewhere"))
    client = person(studio, "owner")
    for name in ("../elsewhere", str(tmp_path.with_name("elsewhere")), "", "demo/rl", "studio"):
        for path in ("/run", "/run/events", "/run/report", "/run/report/paper"):
            assert client.get(path, params={"run": name}).status_code == 404, (path, name)


def test_a_report_is_shown_in_a_frame_that_can_do_nothing(studio):
    client = person(studio, "viewer")
    around = client.get("/run/report", params={"run": "demo"})
    assert '<iframe class="paper" sandbox="allow-popups"' in around.text
    paper = client.get("/run/report/paper", params={"run": "demo"})
    policy = paper.headers.get_list("content-security-policy")
    assert len(policy) == 1
    assert "default-src 'none'" in policy[0]
    assert "sandbox" in policy[0]
    assert "script-src" not in policy[0]
    assert paper.text == "<p>The report</p>"


def test_two_runs_that_cannot_be_compared_are_refused_in_words(studio):
    answer = person(studio, "viewer").get("/compare", params={"a": "demo", "b": "demo"})
    assert answer.status_code == 422
    assert "both are the same run; choose two" in answer.text


def test_events_carry_the_parts_that_changed(studio, monkeypatch):
    monkeypatch.setattr("charter.studio.run_pages.LOOK_S", 0.0)
    looks = iter([{"state": "1", "curves": "a"}, {"state": "2", "curves": "a"}])

    async def first_two():
        stream = events(studio, lambda: next(looks)).body_iterator
        return [await anext(stream), await anext(stream)]

    sent = [json.loads(line.removeprefix("data: ")) for line in asyncio.run(first_two())]
    assert sent == [{"state": "1", "curves": "a"}, {"state": "2"}]


def test_a_folder_that_is_missing_is_one_line(tmp_path, capsys):
    assert run_command(["studio", str(tmp_path / "none")]) == 2
    assert "none: no such folder; give the folder that has the runs" in capsys.readouterr().err


def test_a_broken_manifest_is_named_on_the_page(studio, tmp_path):
    (tmp_path / "demo/rl/manifest.json").write_text("{")
    page = person(studio, "owner").get("/run", params={"run": "demo"})
    assert page.status_code == 200
    assert "not valid JSON" in page.text
    shutil.rmtree(tmp_path / "demo/rl")


# -- chat ------------------------------------------------------------------------------------------------------------------


def say(client, *requests):
    form = {"form_token": client.get("/session").json()["form_token"], "requests": json.dumps(requests)}
    return client.post("/chat/stream", data=form, headers=SAME_SITE)


def ask(model, text="How can I mend the boat?", **changes):
    return {"model": model, "messages": [{"role": "user", "content": text}], "seed": 3, "max_tokens": 8} | changes


@pytest.fixture
def talking(finished_run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(finished_run)
    with opened(tmp_path / "runs") as site:
        site.app = studio_app(site)
        yield site
        site.close()


def test_models_answer_together_and_the_same_seed_gives_the_same_text(talking, finished_run):
    from charter.models.sampling.sampler import LocalSampler
    from charter.models.trunk import load_trunk
    from charter.records import Message
    from charter.run.hashes import derive_seed

    answer = say(person(talking, "owner"), *map(ask, ("demo:base", "demo:policy", "demo:policy")))
    rows = [json.loads(line) for line in answer.text.splitlines()]
    texts = ["".join(row.get("text", "") for row in rows if row["i"] == number) for number in range(3)]
    assert sorted(row["i"] for row in rows if "finish" in row) == [0, 1, 2]
    assert texts[1] == texts[2]
    sampler = LocalSampler(load_trunk(str(finished_run / "rl/model"), device="cpu"), "policy")
    question = [Message(role="user", content="How can I mend the boat?")]
    alone = sampler.generate([question], [[derive_seed(3, "chat", 1)]], temperature=1.0, max_new_tokens=8)[0][0]
    assert texts[1] == alone.text  # what `charter chat` says


def test_a_chat_that_cannot_be_is_refused_in_words(talking):
    client = person(talking, "lead")
    assert "model" in say(client).json()["error"]
    assert "choose one to 4 models" in say(client, *[ask("demo:base")] * 5).json()["error"]
    assert "max_tokens" in say(client, ask("demo:base", max_tokens=5000)).json()["error"]
    assert "unknown model '../demo:base'" in say(client, ask("../demo:base")).text
    too_long = say(client, ask("demo:base", "boat " * 3000)).text
    assert '"error"' in too_long


def test_at_most_four_models_stay_in_memory(talking, monkeypatch):
    monkeypatch.setattr("charter.studio.models.MOST_LOADED", 2)
    client = person(talking, "owner")
    for model in ("demo:base", "demo:sft", "demo:policy"):
        assert '"finish"' in say(client, ask(model)).text
    assert list(talking.loaded.models) == ["demo:sft", "demo:policy"]


# -- arena -----------------------------------------------------------------------------------------------------------------


def send(client, path, **form):
    token = client.get("/session").json()["form_token"]
    return client.post(path, data={"form_token": token, **form}, headers=SAME_SITE)


def arena_vote(client, verdict, text="How can I mend the boat?"):
    """One round; (the page with both answers, the page after the vote)."""
    pool = {"model:demo:base": "on", "model:demo:policy": "on"}
    for number in range(5):  # two answers that are the same text ask for no vote
        if send(client, "/arena/ask", text=f"{text} {number}", **pool).status_code == 303:
            break
    page = client.get("/arena").text
    set_id = page.split('name="set_id" value="')[1].split('"')[0]
    assert send(client, f"/arena/vote?verdict={verdict}", set_id=set_id).status_code == 303
    return page, client.get("/arena").text


def test_arena_votes_hide_the_names_and_feed_ratings_and_training(talking, tmp_path, capsys):
    client = person(talking, "owner")
    assert "There is no vote yet." in client.get("/ratings").text
    wins = []
    for verdict in ("a", "b", "tie", "bad"):
        before, after = arena_vote(client, verdict, f"Tell me a story {verdict}")
        main = before.split("<main")[1]
        assert "demo:base" not in main
        assert "demo:policy" not in main
        assert "demo:base" in after.split("Saved: ")[1].split("</p>")[0]
        wins.append("demo:base" in after.split("A was")[1].split("B was")[0])
    folder = tmp_path / "runs/studio"
    page = client.get("/ratings").text
    assert 'scope="row">demo:base' in page
    votes = read_judgments(folder / "judgments.jsonl")  # the chain is checked
    models = {row["id"]: row["model"] for row in map(json.loads, (folder / "responses.jsonl").read_text().splitlines())}
    assert [list(vote.ranks.values()) for vote in votes] == [[1, 2], [2, 1], [1, 1], ["F", "F"]]
    assert [models[vote.order[0]] == "demo:base" for vote in votes] == wins  # sides as they were shown
    assert run_command(["ratings", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["comparisons"] == 3
    assert all(note in page.replace("&#39;", "'") for note in result["notes"])
    assert run_command(["export", str(folder), "--to", "trl", "--out", str(tmp_path / "pairs.jsonl")]) == 0
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 2
    assert read_pairs(tmp_path / "pairs.jsonl").n_rows == 2


def test_an_arena_vote_counts_once_and_needs_its_two_answers(talking, tmp_path):
    client = person(talking, "owner")
    assert "Write something first." in send(client, "/arena/ask", text="", **{"model:demo:base": "on"}).text
    assert "choose at least two models" in send(client, "/arena/ask", text="Hi", **{"model:demo:base": "on"}).text
    page, _ = arena_vote(client, "a")
    set_id = page.split('name="set_id" value="')[1].split('"')[0]
    assert send(client, "/arena/vote?verdict=b", set_id=set_id).status_code == 303  # a second tab
    talking.mirror.flush()
    assert len(read_judgments(tmp_path / "runs/studio/judgments.jsonl")) == 1


# -- prompt tester ---------------------------------------------------------------------------------------------------------


def wait_for(site, name):
    site.jobs.by_name[name].process.wait(120)


def test_prompts_are_tested_against_models_with_verdicts_and_a_csv(talking, tmp_path):
    client = person(talking, "owner")
    models = {"model:demo:base": "on", "model:demo:policy": "on"}
    text = 'How can I mend the boat?\n\n=HYPERLINK("https://evil.example")\n'
    answer = send(client, "/tester/start", text=text, tokens="8", kind="benign", reward="demo", **models)
    assert (answer.status_code, answer.headers["location"]) == (303, "/test?name=001")
    assert "a test is running" in send(client, "/tester/start", text="Hi", tokens="8", **models).text
    wait_for(talking, "prompt tester")
    page = client.get("/test", params={"name": "001"}).text
    assert "over_refusal" in page, (tmp_path / "runs/studio/tests/001/log.txt").read_text()
    rows = list(csv.DictReader(client.get("/test/csv", params={"name": "001"}).text.splitlines()))
    assert [(row["prompt"], row["model"]) for row in rows] == [
        (prompt, f"demo:{model}")
        for prompt in ("How can I mend the boat?", '\'=HYPERLINK("https://evil.example")')
        for model in ("policy", "base")
    ]
    assert all(row["over_refusal"] == "0.0" and float(row["reward"]) and row["answer"] for row in rows)
    assert client.get("/test", params={"name": "../001"}).status_code == 404


def test_a_test_that_cannot_be_is_refused_in_words(talking, tmp_path):
    client = person(talking, "owner")
    assert "choose at least one model" in send(client, "/tester/start", text="Hi", tokens="8").text
    assert "write at least one prompt" in send(client, "/tester/start", text=" \n", tokens="8", **{"model:demo:base": "on"}).text
    assert "from 1 to 1024" in send(client, "/tester/start", text="Hi", tokens="x", **{"model:demo:base": "on"}).text
    assert not list((tmp_path / "runs/studio/tests").glob("*"))


def test_a_line_separator_inside_a_prompt_does_not_end_it(talking):
    place, _ = write_test(talking, {"tokens": "8", "model:demo:base": "on"}, "One\u2028prompt\n\nTwo\n")
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert rows == [{"prompt": "One\u2028prompt"}, {"prompt": "Two"}]


# -- constitution ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def editing(talking, finished_run, tmp_path):
    """(owner, run and file of the form): the run's constitution lies in the folder."""
    used = json.loads((finished_run / "report.json").read_text())["recipe"]["constitution"]
    shutil.copy(used, tmp_path / "runs/two.yaml")
    return person(talking, "owner"), {"run": "demo", "file": "two.yaml"}


def test_principles_are_shown_with_their_figures_of_a_run(editing, finished_run):
    client, place = editing
    page = client.get("/constitution", params=place).text
    labels = [json.loads(line) for line in (finished_run / "feedback/judgments.jsonl").read_text().splitlines()]
    n = sum(label["principle"] == "harmless" for label in labels)
    assert f"<dt>Compared pairs</dt><dd>{n}</dd>" in page.split("harmless</small>")[1]
    assert client.get("/constitution", params={"file": "../two.yaml"}).status_code == 404


def test_a_change_is_saved_as_a_new_version_with_its_difference(editing, tmp_path):
    client, place = editing
    before = (tmp_path / "runs/two.yaml").read_bytes()
    form = {**place, "id": "harmless", "title": "harm", "preference": "Which reply is <b>safer</b>?", "weight": "2",
            "critique": "Is your last reply harmful?", "revision": "Write it again without harm."}  # fmt: skip
    answer = send(client, "/constitution/save", **form)
    page = client.get(answer.headers["location"]).text
    assert "<strong>harmless reworded</strong>" in page
    assert "<strong>harmless reweighted</strong>" in page
    assert "<ins>Which reply is &lt;b&gt;safer&lt;/b&gt;?</ins>" in page
    saved = load_constitution(tmp_path / "runs/studio/constitutions/two-v2.yaml").principles[0]
    assert (saved.preference, saved.weight, saved.tags) == ("Which reply is <b>safer</b>?", 2.0, ("red_team", "topic"))
    assert (
        send(client, "/constitution/save", **form | {"file": "studio/constitutions/two-v2.yaml", "title": "no harm"}).status_code
        == 303
    )
    assert load_constitution(tmp_path / "runs/studio/constitutions/two-v3.yaml").principles[0].title == "no harm"
    assert "nothing changed" in send(client, "/constitution/save", **place, id="helpful").text
    assert "greater than 0" in send(client, "/constitution/save", **form | {"weight": "-1"}).text
    assert send(client, "/constitution/save?action=remove", **place, id="helpful").status_code == 303
    assert (
        send(client, "/constitution/save?action=add", **place, id="new", title="New", preference="Which is new?").status_code
        == 303
    )
    assert [len(load_constitution(tmp_path / f"runs/studio/constitutions/two-v{n}.yaml").principles) for n in (4, 5)] == [1, 3]
    assert (tmp_path / "runs/two.yaml").read_bytes() == before


def test_a_weight_of_many_digits_stays_when_a_text_is_changed(editing, tmp_path):
    client, place = editing
    file = tmp_path / "runs/two.yaml"
    constitution = load_constitution(file)
    heavy = constitution.principles[0].model_copy(update={"weight": 1 / 3})
    save_constitution(constitution.model_copy(update={"principles": (heavy, *constitution.principles[1:])}), file)
    shown = client.get("/constitution", params=place).text.split('name="weight"')[1].split('value="')[1].split('"')[0]
    send(client, "/constitution/save", **place, id=heavy.id, title="Another title", weight=shown)
    saved = load_constitution(tmp_path / "runs/studio/constitutions/two-v2.yaml").principles[0]
    assert (saved.title, saved.weight) == ("Another title", 1 / 3)


def test_what_would_change_judges_again_only_the_pairs_that_a_change_reaches(finished_run):
    labels = labels_of(finished_run)
    constitution = load_constitution(Path(labels.report["recipe"]["constitution"]))
    assert what_would_change(labels, constitution, 40).reached == 0
    harmless = constitution.principles[0].model_copy(update={"preference": "Which reply names a colour?"})
    changed = constitution.model_copy(update={"principles": (harmless, *constitution.principles[1:])})
    under = [label for label in labels.judgments if label.principle == "harmless"]
    change = what_would_change(labels, changed, 10)
    assert (change.pairs, change.reached, change.judged) == (len(labels.judgments), len(under), min(10, len(under)))
    assert sum(change.counts.values()) == change.judged
    assert len(change.flips) == change.counts["flipped"] + change.counts["changed"]
    # The judge that reads the same question again gives the same label.
    same = judged_again(labels, comparisons_of(*prompts_and_groups(labels), constitution, labels.report["seed"])[:6])
    assert [row.ranks for row in same] == [row.ranks for row in labels.judgments[:6]]


def prompts_and_groups(labels):
    return [labels.prompts[group[0].prompt_id] for group in labels.groups], labels.groups


def test_flips_are_on_the_page_and_the_edited_text_stays(editing):
    client, place = editing
    page = send(client, "/constitution/preview", **place, id="harmless", preference="Which reply names a colour?").text
    assert "The change reaches" in page
    assert "Which reply names a colour?</textarea>" in page


# -- runs that are started here --------------------------------------------------------------------------------------------


def test_the_owner_starts_and_stops_a_run(talking, random_llama, tmp_path):
    recipe = str(write_tiny_recipe(tmp_path / "runs", random_llama))
    client = person(talking, "owner")
    form = {"recipe": recipe, "constitution": "constitution.yaml", "name": "mine"}
    for changes, words in (({"name": "../mine"}, "needs letters, digits"), ({"name": "demo"}, "there already"),
                           ({"recipe": "/etc/passwd"}, "unknown recipe"), ({"constitution": "x"}, "unknown recipe")):  # fmt: skip
        answer = send(client, "/start", **form | changes)
        assert (answer.status_code, words in answer.text) == (422, True), words
    assert send(client, "/start", **form).status_code == 303
    job = talking.jobs.by_name["mine"]
    assert job.process.args[3:] == ["run", recipe, "--out", str(tmp_path / "runs/mine"), "--quiet", "--set",
                                    f'constitution="{tmp_path}/runs/constitution.yaml"']  # fmt: skip
    assert "mine is running" in send(client, "/start", **form).text
    assert "Stop mine" in client.get("/start").text
    assert send(client, "/stop", run="mine").status_code == 303
    job.process.wait(60)
    assert job.state == "stopped"
    assert "mine is not running" in send(client, "/stop", run="mine").text


def test_jobs_end_with_the_studio_unless_they_are_runs(tmp_path):
    jobs = Jobs()
    jobs.start("bad", ["no-such-command"], tmp_path / "log", stays=False)
    jobs.by_name["bad"].process.wait(60)
    assert jobs.state("bad") == "failed"
    assert "no-such-command" in (tmp_path / "log").read_text()
    jobs.start("test", ["--help"], tmp_path / "log", stays=False)
    jobs.close()
    assert jobs.by_name["test"].process.poll() is not None
