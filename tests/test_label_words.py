"""What a label page shows is what is stored, and a contradiction is asked back."""

from __future__ import annotations

import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.web.instructions import default_instructions
from charter.web.lead.pages import figures_of
from charter.web.project import LabelSettings, open_project, text_hash
from charter.web.store import RaterAnswer
from charter.web.texts import rendered, with_codes, without_codes
from charter.web.texts import shown as as_shown
from label_project import SAME_SITE, field, make_project, rank, responses, send

PIECES = ["**", "*", "_", "`", "```\n", "~~~", "\n", "# ", "- ", "1. ", "> ", "|", "\\(", "\\]", "\\{", "<b>", "&amp;",
          "[x](y)", "![p](q)", " ", "\t", "a", "2", "\u05d0", "\r\n", "    "]  # fmt: skip
MARKDOWN = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(MARKDOWN | st.text())
def test_formatting_drops_no_character_and_opens_no_tag_of_the_text(text):
    shown = str(rendered(text))
    assert html.unescape(re.sub("</?(?:code|strong|em|abbr[^>]*)>", "", shown)) == with_codes(text)
    assert set(re.findall(r"</?(\w+)", shown)) <= {"code", "strong", "em", "abbr"}
    assert html.unescape(re.sub("</?abbr[^>]*>", "", str(as_shown(text)))) == with_codes(text)


@pytest.mark.parametrize("character", ["\u200b", "\u202e", "\u2066", "\ufeff", "\u00ad", "\x07", "\x85", "\U000e0041"])
def test_an_invisible_character_is_shown_by_its_code_and_kept_in_a_rewrite(character):
    text = f"No{character}, <b> ⟨U+200C⟩"
    shown = with_codes(text)
    assert shown == f"No⟨U+{ord(character):04X}⟩, <b> ⟨U+200C⟩"
    assert without_codes(shown + "!", text) == text + "!"
    title = r'title="[\w -]+: an invisible character of the text"'
    for page in (as_shown(text), rendered(text)):
        assert re.search(rf"No<abbr {title}>⟨U\+{ord(character):04X}⟩</abbr>, &lt;b&gt;", page)
        assert character not in page
        assert page.endswith(" ⟨U+200C⟩")  # these characters were written in the text


@pytest.mark.parametrize("text", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "👩\u200d🔬"])
def test_joiners_of_scripts_and_emoji_are_text(text):
    assert with_codes(text) == text


def test_the_name_of_an_invisible_character_is_shown_on_hover():
    assert as_shown("a\u200bb") == 'a<abbr title="zero width space: an invisible character of the text">⟨U+200B⟩</abbr>b'


@pytest.mark.parametrize("text", ["2*3*4 = 24", r"\(a*b*c\)", r"\[ x^2 \]", r"\{1,2\}", "a_b_c", "one\ntwo", "5 ** 2 ** 3"])
def test_arithmetic_and_formulas_are_no_markdown(text):
    assert rendered(text) == text


def test_marks_stay_beside_the_words_that_they_format():
    assert rendered("**b** *i* `c*d*e`") == "<strong>**b**</strong> <em>*i*</em> <code>`c*d*e`</code>"


@pytest.mark.parametrize(
    ("settings", "marked", "choice", "words"),
    [
        ({}, "A", "2", "You prefer answer A, and you marked it F"),
        ({}, "B", "7", "You prefer answer B, and you marked it F"),
        ({}, "AB", "2", "You marked both answers F"),
        ({"strength": False}, "A", "1", "You prefer answer A, and you marked it F"),
        ({"strength": False}, "B", "tie", "You chose a tie, and you marked answer B F"),
    ],
)
def test_a_choice_that_contradicts_an_f_is_asked_back_and_kept_on_the_page(tmp_path, open_world, settings, marked, choice, words):
    world = open_world(make_project(tmp_path, kind="pair", k=2, **settings))
    ann = world.person()
    page = ann.get("/label").text
    form = {f"rank:{key}": "F" for letter, key in zip("AB", responses(page), strict=True) if letter in marked}
    answer = send(ann, "/vote", page, strength=choice, **form)
    assert answer.status_code == 422
    assert words in html.unescape(answer.text)
    assert answer.text.count(" checked") == len(marked) + 1
    assert not world.judgments()


@pytest.mark.parametrize(("marked", "choice", "ranks", "strength"), [(1, "2", (1, "F"), 3), (0, "8", ("F", 1), -4)])
def test_a_choice_that_fits_an_f_keeps_its_strength(tmp_path, open_world, marked, choice, ranks, strength):
    world = open_world(make_project(tmp_path, kind="pair", k=2))
    ann = world.person()
    page = ann.get("/label").text
    keys = responses(page)
    send(ann, "/vote", page, strength=choice, **{f"rank:{keys[marked]}": "F"})
    (judgment,) = world.judgments()
    assert (judgment.ranks, judgment.strength) == (dict(zip(keys, ranks, strict=True)), strength)


def test_a_rewrite_of_an_answer_that_is_good_as_it_is_is_asked_back(tmp_path, open_world):
    world = open_world(make_project(tmp_path, kind="edit", n=1, k=1))
    ann = world.person()
    page = ann.get("/label").text
    (key,) = responses(page)
    answer = send(ann, "/vote", page, **{f"edit:{key}": "My rewrite.", f"rank:{key}": "1"})
    assert (answer.status_code, "My rewrite." in answer.text) == (422, True)
    assert not world.judgments()


def test_a_form_of_an_earlier_session_is_shown_and_can_be_sent_again(tmp_path, open_world):
    world = open_world(make_project(tmp_path, kind="edit", n=1, k=1))
    ann = world.person()
    page = ann.get("/label").text
    (key,) = responses(page)
    ann.post(ann.link)  # joined again in another tab
    refused = send(ann, "/vote", page, **{f"edit:{key}": "Long <work>.\nTwo."}, comment="why")
    assert refused.status_code == 403
    assert refused.text.count("Long &lt;work&gt;.\nTwo.") == 2  # to read, and to send
    again = {name: html.unescape(text) for name, text in re.findall(r'<textarea name="([^"]+)" hidden>\n(.*?)</textarea>',
                                                                    refused.text, re.S)}  # fmt: skip
    ann.post("/vote", data=again | {"form_token": field(refused.text, "form_token")}, headers=SAME_SITE)
    (judgment,) = world.judgments()
    assert (judgment.edit, judgment.comment) == ({key: "Long <work>.\nTwo."}, "why")


def test_who_is_signed_out_sees_what_they_wrote_and_nothing_to_send(tmp_path, open_world):
    world = open_world(make_project(tmp_path, kind="edit", n=1, k=1))
    ann = world.person()
    page = ann.get("/label").text
    (key,) = responses(page)
    ann.cookies.clear()
    refused = send(ann, "/vote", page, **{f"edit:{key}": "Long work."})
    assert (refused.status_code, refused.text.count("Long work."), "<form" in refused.text) == (401, 1, False)


def test_the_page_says_what_is_stored_of_a_vote_and_a_skip_in_two_tabs(tmp_path, open_world):
    world = open_world(make_project(tmp_path, n=3))
    ann = world.person()
    first = ann.get("/label").text
    send(ann, "/vote", first, **rank(first, 1, 2, 3))
    assert "Not skipped: you voted on this set before" in send(ann, "/skip", first, reason="other").text
    second = ann.get("/label").text
    assert "Skipped." in send(ann, "/skip", second, reason="other").text
    assert "Saved." in send(ann, "/vote", second, **rank(second, 3, 2, 1)).text
    assert "Your first vote stands" in send(ann, "/vote", second, **rank(second, 1, 2, 3)).text
    votes = [one for one in world.judgments() if one.has_verdict]
    assert [list(one.ranks.values()) for one in votes] == [[1, 2, 3], [3, 2, 1]]
    assert votes[1].supersedes == world.judgments()[1].id


def test_the_counters_are_those_of_the_store(tmp_path, open_world):
    world = open_world(make_project(tmp_path, n=4))
    ann = world.person()
    for number in range(1, 4):
        page = ann.get("/label").text
        after = send(ann, "/vote", page, **rank(page, 1, 2, 3)).text
        assert f"You: <strong>{number}</strong>" in after
        assert f"Team: <strong>{number} of 4</strong>" in after
    assert "You: <strong>2</strong>" in send(ann, "/undo", after).text


def test_a_rater_and_the_lead_see_the_same_share_of_ties(tmp_path, open_world):
    world = open_world(make_project(tmp_path, n=2))
    ann = world.person()
    page = ann.get("/label").text
    assert "Ties: you 33 %, team 33 % of pairs" in send(ann, "/vote", page, **rank(page, 1, 1, "F")).text
    (row,) = figures_of(world.site).raters
    assert (row.ties.hits, row.ties.n) == (1, 3)


def test_who_answers_fast_is_told_of_a_break_too(tmp_path, open_world):
    world = open_world(make_project(tmp_path, n=310, k=1, kind="thumbs"))
    ann = world.person()
    for _ in range(305):
        world.now += 10
        handout = world.site.store.claim(ann.who, world.now)
        world.site.store.vote(ann.who, handout, RaterAnswer({handout.order[0]: 1}), world.now, instructions_hash="v")
    assert "You have worked for 51 minutes." in ann.get("/label").text


@pytest.mark.parametrize(
    ("settings", "words", "absent"),
    [
        ({}, ["several answers", "give them the same rank", "instead of a rank"], ["thumbs"]),
        ({"ties": "forbid"}, ["This project has no ties"], ["the same rank"]),
        ({"kind": "pair"}, ["**both** answers", "no button for a tie", "Mark **F** on an answer"], ["rank"]),
        ({"kind": "pair", "strength": False}, ["you may choose a tie"], ["rank", "slightly"]),
        ({"direction": "more_harmful"}, ["more harmful", "Judge by harm alone"], ["**Helpful.**", "the last rank"]),
        ({"kind": "thumbs"}, ["Give a thumbs up"], ["rank", "Ties", "**F**"]),
        ({"kind": "edit"}, ["How to rewrite", "learn from what you write"], ["rank", "Ties"]),
        ({"kind": "redteam"}, ["try to get it to say", "more harmless", "end a dialogue"], ["rank", "Skip"]),
    ],
)
def test_the_instructions_fit_the_kind(settings, words, absent):
    text = default_instructions(LabelSettings(**settings))
    assert [word for word in words if word not in text] == []
    assert [word for word in absent if word in text] == []


def test_the_instructions_for_rankings_are_the_version_that_people_have_read():
    assert text_hash(default_instructions(LabelSettings())) == "bcdb29f3aa7a4aa0"


@pytest.mark.parametrize(
    ("strength", "question"), [(True, "Which answer is better, and how much?"), (False, "Which answer is better?")]
)
def test_the_question_asks_how_much_only_where_there_are_notches(tmp_path, open_world, strength, question):
    page = open_world(make_project(tmp_path, k=2, kind="pair", strength=strength)).person().get("/label").text
    assert f"<h1>{question}</h1>" in page
    assert ("from much more for A to much more for B" in page) is strength


def test_a_page_asks_who_is_signed_in(tmp_path, open_world):
    world = open_world(make_project(tmp_path))
    ann = world.person()
    page = ann.get("/label").text
    assert ann.get("/session").json() == {"rater_id": ann.who, "form_token": field(page, "form_token")}
    assert world.stranger().get("/session").status_code == 401


def test_a_red_team_form_that_is_asked_back_keeps_its_fields(tmp_path, open_world):
    from label_project import Parrot

    (tmp_path / "p").mkdir()
    (tmp_path / "p/label.yaml").write_text("kind: redteam\n")
    world = open_world(open_project(tmp_path / "p"), [Parrot("one")])
    ann = world.person()
    page = send(ann, "/redteam/say", ann.get("/redteam").text, text="Hello").text
    first, _ = responses(page)
    again = send(ann, "/redteam/choose", page, strength="1", **{f"rank:{first}": "F"}).text
    assert "You prefer answer A" in again
    assert again.count(" checked") == 2
    page = send(ann, "/redteam/choose", page, strength="1").text
    again = send(ann, "/redteam/end", page, about="My <trick>", tags="x")
    assert (again.status_code, "My &lt;trick&gt;" in again.text) == (422, True)


def test_words_for_the_script_are_one_json_object(tmp_path, open_world):
    page = open_world(make_project(tmp_path)).person().get("/label").text
    words = json.loads(html.unescape(re.search(r'data-words="([^"]*)"', page)[1]))
    assert {"signed-out", "away", "other-person", "back", "restored"} <= words.keys()
