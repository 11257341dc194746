"""A person's path through the label page in a real browser, by keyboard; what axe says of each page; a killed server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext

import pytest
import yaml

from charter.commands.app import run_command
from charter.votes.judgments import current, deciding, read_judgments
from charter.web.label_app import label_app
from charter.web.project import open_project
from charter.web.serve import open_site
from label_project import Parrot, known, make_project, write_table

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@contextmanager
def served(project, samplers=()):
    """A site on a free port of this machine, in a thread; (site, address)."""
    import uvicorn

    with open_site(project, samplers) as site:
        config = uvicorn.Config(label_app(site), port=0, log_config=None, access_log=False, lifespan="off")
        ready = threading.Event()

        class Ready(uvicorn.Server):
            async def startup(self, sockets=None):
                await super().startup(sockets)
                ready.set()

        server = Ready(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        ready.wait()
        yield site, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def serious(page) -> list[str]:
    """What axe finds that breaks WCAG 2.2 A or AA and is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    found = Axe().run(page, options=options).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def test_what_is_pressed_after_sending_changes_no_vote(tmp_path, browser):
    with served(make_project(tmp_path, n=4, k=2, kind="pair")) as (site, home):
        token, _ = site.access.invite("labeler", site.clock())
        page = browser.new_page(viewport={"width": 390, "height": 740})
        page.set_default_timeout(10_000)
        page.goto(f"{home}/join/{token}")
        for place in ("instructions", "label"):
            page.keyboard.press("Enter")
            page.wait_for_url(f"**/{place}")
        asked = []
        # The page asks whether it is signed in; meanwhile the person begins with the next set. A lambda: playwright marks it.
        page.route("**/session", lambda route: asked.append(route))
        for key in ("1", "Enter", "8", "f", "Enter"):
            page.keyboard.press(key)
        page.wait_for_function("document.querySelector('#answer').inert")
        assert page.evaluate("document.querySelector('[name=strength]:checked').value") == "1"
        with page.expect_navigation():
            asked[0].continue_()
        page.unroute("**/session")
        page.keyboard.press("2")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        held = page.context.new_cdp_session(page)
        for repeats in (False, True):  # a key that is held down acts once
            with page.expect_navigation() if not repeats else nullcontext():
                held.send(
                    "Input.dispatchKeyEvent", {"type": "keyDown", "key": "u", "code": "KeyU", "text": "u", "autoRepeat": repeats}
                )
        assert page.inner_text(".said") == "Taken back. Change it and send it again."
        page.click("#skip summary")
        box = page.locator("#skip form").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        site.mirror.flush()
    votes = read_judgments(tmp_path / "p/judgments.jsonl")
    assert [vote.strength for vote in votes] == [4, 3, None]
    assert len(current(votes)) == 2


def test_a_principle_and_a_reason_take_a_key_each(tmp_path, browser):
    (tmp_path / "p").mkdir()
    principles = [{"id": key, "title": f"Be {key}", "preference": "x"} for key in ("kind", "true")]
    (tmp_path / "p/two.yaml").write_text(yaml.safe_dump({"title": "Two", "principles": principles}))
    with served(make_project(tmp_path, n=1, k=2, kind="pair", principles="two.yaml")) as (site, home):
        token, _ = site.access.invite("labeler", site.clock())
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.set_default_timeout(10_000)
        page.goto(f"{home}/join/{token}")
        for place in ("instructions", "label"):
            page.keyboard.press("Enter")
            page.wait_for_url(f"**/{place}")
        for key in ("q", "w", "q", "3"):  # the second q takes the first back
            page.keyboard.press(key)
        assert page.inner_text("#summary") == "A is somewhat better · true"
        assert serious(page) == []
        page.keyboard.press("r")
        page.keyboard.type("It is so.")
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answer", state="detached")
        site.mirror.flush()
    (vote,) = read_judgments(tmp_path / "p/judgments.jsonl")
    assert (deciding(vote), vote.comment, vote.strength) == (("true",), "It is so.", 2)


def test_a_persons_path_by_keyboard_to_a_reward_model(tmp_path, browser, random_llama):
    (tmp_path / "p").mkdir()
    known(tmp_path / "p/practice.jsonl", 1, [1, 2, "F"], "Practice")
    settings = {"practice": "practice.jsonl", "repeat_share": 0.0, "title": "Helpful answers"}
    (tmp_path / "p/label.yaml").write_text(yaml.safe_dump(settings))
    with served(open_project(write_table(tmp_path / "t.jsonl", 6), tmp_path / "p")) as (site, home):
        token, who = site.access.invite("labeler", site.clock())
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(10_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))

        def look() -> str:
            assert serious(page) == []
            return page.inner_text("main")

        page.goto(f"{home}/join/{token}")
        assert who in look()
        page.keyboard.press("Enter")
        page.wait_for_url("**/instructions")
        assert "When to use F" in look()
        page.keyboard.press("Enter")
        page.wait_for_url("**/practice")
        assert "Practice 0?" in look()
        for key in ("1", "2", "f", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector(".compare")
        assert "Because of 0." in look()
        page.keyboard.press("Enter")

        def shown() -> tuple[str, list[str]]:
            page.wait_for_selector("#answer[data-mode=work]")
            ids = page.eval_on_selector_all(".card", "all => all.map(one => one.dataset.response)")
            return page.get_attribute("#answer [name=set_id]", "value"), ids

        def send(*keys: str) -> tuple[str, list[str]]:
            before = shown()
            for key in keys:
                page.keyboard.press(key)
            with page.expect_navigation():
                page.keyboard.press("Enter")
            return before

        first = send("1", "2", "3")
        look()
        second = send("3", "j", "1", "2")  # the mark goes to the next answer without a rank: B is passed over, then last
        third = send("2", "1", "3")
        with page.expect_navigation():
            page.keyboard.press("u")
        assert shown()[0] == third[0]
        assert page.inner_text("#summary") == "A 2 · B 1 · C 3"
        send("j", "1")
        skipped = shown()
        page.keyboard.press("s")
        page.keyboard.press("ArrowDown")
        look()
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert "Skipped." in page.inner_text("main")
        tied = shown()
        page.keyboard.press("1")
        page.keyboard.press("1")
        assert page.inner_text("#live") == "Answer B: rank 1, tied with A."
        page.keyboard.press("2")
        page.keyboard.press("p")
        assert page.is_checked("#plain")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        nonsense = send("f", "f", "1")
        page.wait_for_selector("h1:has-text('Done')")
        look()
        page.close()
    assert problems == []
    assert all(url.startswith(home) for url in asked)
    last = {one.set_id: one for one in current(read_judgments(tmp_path / "p/judgments.jsonl"))}
    assert last[first[0]].ranks == dict(zip(first[1], (1, 2, 3), strict=True))
    assert last[second[0]].ranks == dict(zip(second[1], (3, 2, 1), strict=True))
    assert last[third[0]].ranks == dict(zip(third[1], (2, 1, 3), strict=True))
    assert last[skipped[0]].flags == {skipped[0]: ["skipped", "knowledge"]}
    assert last[tied[0]].ranks == dict(zip(tied[1], (1, 1, 2), strict=True))
    assert last[nonsense[0]].ranks == dict(zip(nonsense[1], ("F", "F", 1), strict=True))
    assert len(last) == 6

    pairs, out = str(tmp_path / "pairs.jsonl"), str(tmp_path / "reward")
    assert run_command(["export", str(tmp_path / "p"), "--to", "trl", "--out", pairs]) == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 3 + 3 + 3 + 2 + 2  # a tie of two and two F are no pair
    train = ["reward", "train", pairs, "--out", out, "--model", str(random_llama), "--test-fraction", "0.4", "--quiet"]
    assert run_command(train) == 0
    assert (tmp_path / "reward/metrics.json").exists()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_pages_fit_and_pass_axe_in_both_schemes(tmp_path, browser, scheme, width):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text(yaml.safe_dump({"kind": "pair", "warnings": {"x": "violence"}}))
    with served(open_project(write_table(tmp_path / "t.jsonl", 2, 2, tags=["x"]), tmp_path / "p")) as (site, home):
        page = browser.new_page(viewport={"width": width, "height": 780}, color_scheme=scheme)
        site.access.invite("labeler", site.clock())
        page.goto(f"{home}/join/{site.access.invite('owner', site.clock())[0]}")
        page.keyboard.press("Enter")
        page.wait_for_url("**/lead")
        page.goto(f"{home}/instructions")
        page.keyboard.press("Enter")
        page.wait_for_url("**/label")
        for path in ("/label", "/lead", "/lead/people", "/lead/contested", "/lead/instructions", "/lead/model"):
            page.goto(home + path)
            assert serious(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        page.close()


def test_a_covered_dialogue_fits_a_phone_passes_axe_and_shows_its_text_when_asked(tmp_path, browser):
    (tmp_path / "p").mkdir()
    settings = {"kind": "redteam", "warnings": {"red_team": "insults"}, "redteam": {"turns": 2}}
    (tmp_path / "p/label.yaml").write_text(yaml.safe_dump(settings))
    with served(open_project(tmp_path / "p"), [Parrot("one")]) as (site, home):
        page = browser.new_page(viewport={"width": 360, "height": 780})
        page.goto(f"{home}/join/{site.access.invite('labeler', site.clock())[0]}")
        page.keyboard.press("Enter")
        page.wait_for_url("**/instructions")
        page.keyboard.press("Enter")
        page.wait_for_url("**/redteam")
        assert serious(page) == []
        page.fill("[name=text]", "Be rude.")
        page.click("text=Send")
        page.wait_for_selector(".cards")
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        blur = "getComputedStyle(document.querySelector('.card .text.rendered')).filter"
        assert "blur" in page.evaluate(blur)
        page.check("#reveal")
        assert page.evaluate(blur) == "none"
        page.keyboard.press("8")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert "turn 2 of at most 2" in page.inner_text("main")
        assert serious(page) == []
        page.close()


def test_without_javascript_every_form_works(tmp_path, browser):
    with served(open_project(write_table(tmp_path / "t.jsonl", 1), tmp_path / "p")) as (site, home):
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(f"{home}/join/{site.access.invite('labeler', site.clock())[0]}")

        def click(what: str) -> None:
            with page.expect_navigation():
                page.click(what)

        click("text=Go in")
        click("text=I have read this")
        for card, rank in zip(page.query_selector_all(".card"), ("1", "F", "2"), strict=True):
            card.query_selector(f"input[value='{rank}']").check(force=True)
        click("text=Send")
        assert "Done" in page.inner_text("h1")
        click("text=Undo")
        assert len(page.query_selector_all(".card input:checked")) == 3
        context.close()


def enter(page, site, home, who=None) -> str:
    """Join as a labeler and read the instructions; the link."""
    link = f"{home}/join/{site.access.invite('labeler', site.clock(), rater_id=who)[0]}"
    page.goto(link)
    page.keyboard.press("Enter")
    page.wait_for_url("**/instructions")
    page.keyboard.press("Enter")
    page.wait_for_url("**/label")
    return link


def test_an_edit_outlives_its_session_and_is_sent_after_signing_in_again(tmp_path, browser):
    project = make_project(tmp_path, n=2, k=1, kind="edit")
    with served(project) as (site, home):
        context = browser.new_context()
        page = context.new_page()
        link = enter(page, site, home)
        context.clear_cookies()  # signed out in another tab
        page.fill("textarea[data-key=e]", "An hour of work.")
        page.wait_for_selector("#notice:not([hidden])")  # unasked, with the next autosave
        assert "You are signed out: nothing is being saved" in page.inner_text("#notice")
        assert serious(page) == []
        page.click("text=Send")
        assert page.input_value("textarea[data-key=e]") == "An hour of work."
        tab = context.new_page()
        tab.goto(link)
        with page.expect_navigation():
            tab.keyboard.press("Enter")  # the first page sends by itself
        assert "Saved." in page.inner_text("main")
        assert page.evaluate("localStorage.length") == 0
        context.set_offline(True)
        page.fill("textarea[data-key=e]", "Written offline again.")
        page.click("text=Send")
        page.wait_for_selector("#notice:not([hidden])")
        assert "Saved." not in page.inner_text("main")  # nothing is being saved
        context.close()
    (judgment,) = read_judgments(tmp_path / "p/judgments.jsonl")
    assert list(judgment.edit.values()) == ["An hour of work."]


def test_a_form_from_before_a_second_join_is_sent_with_the_session_of_now(tmp_path, browser):
    with served(make_project(tmp_path, n=2, k=1, kind="edit")) as (site, home):
        context = browser.new_context()
        page = context.new_page()
        link = enter(page, site, home)
        tab = context.new_page()
        tab.goto(link)
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/label")
        page.fill("textarea[data-key=e]", "Written before.")
        with page.expect_navigation():
            page.click("text=Send")
        assert "Saved." in page.inner_text("main")
        context.close()


def test_another_person_in_the_same_browser_is_noticed_before_anything_is_sent(tmp_path, browser):
    with served(make_project(tmp_path, n=2, k=1, kind="edit")) as (site, home):
        context = browser.new_context()
        page = context.new_page()
        enter(page, site, home, "ann")
        page.fill("textarea[data-key=e]", "Written by ann.")
        enter(context.new_page(), site, home, "bob")
        page.click("text=Send")
        page.wait_for_selector("#notice:not([hidden])")
        assert "signed in as somebody else" in page.inner_text("#notice")
        assert page.input_value("textarea[data-key=e]") == "Written by ann."
        context.close()
    assert not (tmp_path / "p/judgments.jsonl").exists()


def test_what_is_written_while_the_server_is_away_is_there_after_a_reload(tmp_path, browser):
    with served(make_project(tmp_path, n=2, k=1, kind="edit")) as (site, home):
        context = browser.new_context()
        page = context.new_page()
        enter(page, site, home)
        context.set_offline(True)
        page.fill("textarea[data-key=e]", "Written offline.")
        page.click("text=Send")
        page.wait_for_selector("#notice:not([hidden])")
        assert "The server does not answer" in page.inner_text("#notice")
        page.goto("about:blank")
        context.set_offline(False)
        page.goto(f"{home}/label")
        assert page.input_value("textarea[data-key=e]") == "Written offline."
        with page.expect_navigation():
            page.click("text=Send")
        assert "Saved." in page.inner_text("main")
        assert page.evaluate("localStorage.length") == 0
        context.close()


def test_keys_count_by_their_place_on_other_keyboards(tmp_path, browser):
    with served(make_project(tmp_path, n=2, k=3)) as (site, home):
        page = browser.new_page()
        enter(page, site, home)

        def press(key: str, code: str) -> None:
            event = "new KeyboardEvent('keydown', {key, code, bubbles: true})"
            page.evaluate(f"([key, code]) => document.body.dispatchEvent({event})", [key, code])

        press("\u00e9", "Digit2")  # AZERTY
        press("\u0430", "KeyF")  # Cyrillic
        press("&", "Digit1")
        assert page.inner_text("#summary") == "A 2 · B F · C 1"
        press("\u044b", "KeyS")
        assert page.get_attribute("#skip", "open") is not None
        press("?", "Digit7")
        assert "press the key where a US keyboard has the letter" in page.inner_text("#keys")
        page.close()


def test_the_page_shows_every_character_of_an_answer(tmp_path, browser):
    texts = ["2*3*4 = 24 \\(a*b*c\\) \\[ x \\] \\{1,2\\}\nsecond line", "# One\n\n- **two**\n\n| a | b |\n```\n  x\n```"]
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "?", "responses": texts}) + "\n")
    with served(open_project(tmp_path / "t.jsonl", tmp_path / "p")) as (site, home):
        page = browser.new_page(viewport={"width": 375, "height": 740})
        enter(page, site, home)
        shown = page.eval_on_selector_all(".card .text.rendered", "all => all.map(text => text.innerText)")
        assert sorted(shown) == sorted(texts)
        page.close()


def test_a_choice_against_an_f_is_asked_back_and_can_be_cleared(tmp_path, browser):
    with served(make_project(tmp_path, n=1, k=2, kind="pair")) as (site, home):
        page = browser.new_page()
        enter(page, site, home)
        for key in ("2", "f", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector(".problem:not(#notice)")
        assert page.inner_text("#summary") == "A F · A is clearly better"
        page.keyboard.press("0")
        assert page.inner_text("#summary") == "A F"
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert "Saved." in page.inner_text("main")
        page.close()


def test_votes_survive_a_killed_server():
    """The benchmark at a small size: two kills under eight clients."""
    place = os.path.join(os.path.dirname(__file__), "../benchmarks/label_load.py")
    command = [sys.executable, place, "--clients", "8", "--sets", "60", "--overlap", "2", "--kills", "2"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert '"votes_acknowledged": 120' in found.stdout
    assert '"kills": 2' in found.stdout
