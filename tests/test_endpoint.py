"""What a server says is read strictly: choices, log-probabilities, waits. What cannot be read is no verdict."""

import email.utils
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from charter.endpoints.answers import AnswerCache, BadServerAnswer, ServerAnswer, parse_answer
from charter.endpoints.endpoint import hh_transcript, read_choice, written_choice
from charter.endpoints.patience import backoff, jitter, requested_wait, seconds_in, window_wait
from charter.endpoints.settings import EndpointSettings
from charter.errors import InputError
from charter.recipe.files import load_recipe
from charter.records import Message
from loopback import chat_answer

LETTERS = ("A", "B")


# -- choices ---------------------------------------------------------------------------------------------------------------


def test_a_choice_is_the_mass_of_the_tokens_that_spell_it():
    first = [("A", math.log(0.5)), (" A", math.log(0.2)), ("(B", math.log(0.1)), ("the", math.log(0.05))]
    assert read_choice(first, LETTERS) == pytest.approx([math.log(0.7), math.log(0.1)])


def test_an_option_that_is_not_listed_counts_as_the_least_likely_that_is():
    assert read_choice([("A", -0.1), ("the", -4.0)], LETTERS) == [-0.1, -4.0]


def test_a_single_listed_token_leaves_the_rest_of_the_probability_to_the_other_option():
    assert read_choice([("B", math.log(0.9))], LETTERS) == pytest.approx([math.log(0.1), math.log(0.9)])
    assert read_choice([("A", 0.0)], LETTERS) == pytest.approx([0.0, math.log(1e-4)])  # 1 as the server rounds it


def test_where_no_option_is_listed_there_is_no_verdict():
    assert all(map(math.isnan, read_choice([("I", -0.1), ("Sorry", -3.0), (" ", -4.0)], LETTERS)))


def test_a_token_that_begins_one_option_alone_stands_for_it():
    first = [("he", -1.0), ("vio", -2.0), ("h", -3.0)]
    assert read_choice(first, ("help", "violence")) == pytest.approx([math.log(math.exp(-1) + math.exp(-3)), -2.0])
    assert all(map(math.isnan, read_choice([("h", -1.0)], ("help", "harm"))))


@given(st.lists(st.floats(-9999, 0), min_size=2, max_size=20), st.floats(-5, 5))
def test_a_constant_on_all_tokens_changes_no_margin(logprobs, shift):
    tokens = ["A", "B", *(f"t{i}" for i in range(len(logprobs) - 2))]

    def margin(add):
        a, b = read_choice([(t, x + add) for t, x in zip(tokens, logprobs, strict=True)], LETTERS)
        return a - b

    assert margin(shift) == pytest.approx(margin(0.0), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "choice"),
    [("A", 0), (" (B).\n", 1), ("**b**", 1), ("", None), ("A or B", None), ("I would say A", None), ("Neither", None),
     ("A. B is worse.", None), ("C", None)],
)  # fmt: skip
def test_a_written_choice_is_an_option_and_nothing_else(text, choice):
    assert written_choice(text, LETTERS) == choice


def test_a_transcript_ends_where_the_assistant_begins():
    said = [Message(role="system", content="Be kind."), Message(role="user", content="Hello"),
            Message(role="assistant", content="Yes?"), Message(role="user", content="Why?")]  # fmt: skip
    assert hh_transcript(said) == "\n\nBe kind.\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"


# -- answers ---------------------------------------------------------------------------------------------------------------


def test_an_answer_is_text_reason_tokens_and_log_probabilities():
    raw = chat_answer("B", logprobs=[("B", -0.2), ("A", -1.9)], tokens=(31, 1))
    assert parse_answer(raw, "chat", (9, 9)) == ServerAnswer("B", "stop", (("B", -0.2), ("A", -1.9)), (31, 1), "canned")
    text = json.dumps({"choices": [{"text": " B", "finish_reason": "length", "logprobs": {"top_logprobs": [{" B": -0.5}]}}]})
    assert parse_answer(text.encode(), "completions", (9, 9)) == ServerAnswer(" B", "length", ((" B", -0.5),), (9, 9))


@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length"])
def test_a_cut_answer_is_cut_in_the_words_of_any_server(reason):
    assert parse_answer(chat_answer("half an", finish_reason=reason), "chat", (0, 0)).finish_reason == "length"


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_an_answer_that_the_server_broke_off_is_none(reason):
    with pytest.raises(BadServerAnswer, match=reason):
        parse_answer(chat_answer("half an", finish_reason=reason), "chat", (0, 0))


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_half_an_answer_is_none(cut):
    raw = chat_answer("B", logprobs=[("B", -0.2)])
    with pytest.raises(BadServerAnswer):
        parse_answer(raw[: min(cut, len(raw) - 1)], "chat", (0, 0))


@pytest.mark.parametrize(
    "body",
    [[], {}, {"choices": []}, {"choices": [{"message": {}}]}, {"choices": [{"message": {"content": 7}}]},
     {"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"token": "A", "logprob": "high"}]}}]}],
)  # fmt: skip
def test_what_is_not_of_the_protocols_form_is_no_answer(body):
    with pytest.raises(BadServerAnswer):
        parse_answer(json.dumps(body).encode(), "chat", (0, 0))


def test_numbers_that_are_none_are_no_log_probabilities():
    raw = chat_answer("A", logprobs=[("A", -0.2)]).replace(b"-0.2", b"NaN")
    with pytest.raises(BadServerAnswer):
        parse_answer(raw, "chat", (0, 0))


def test_text_that_no_record_may_hold_is_replaced():
    raw = chat_answer("a").replace(b'"a"', b'"x\\u0000y\\ud800z"')
    assert parse_answer(raw, "chat", (0, 0)).text == "x\ufffdy\ufffdz"


def test_the_cache_gives_back_what_was_put_and_nothing_else(tmp_path):
    cache, request = AnswerCache(tmp_path), {"url": "u", "model": "m", "body": {"seed": 1}}
    assert cache.get(request) is None
    answer = ServerAnswer("é", "stop", (("A", -0.1),), (3, 4), "m")
    cache.put(request, answer)
    assert cache.get(request) == answer
    assert cache.get({**request, "body": {"seed": 2}}) is None
    assert list(cache.answers("u", "m")) == [({"seed": 1}, answer)]
    assert list(cache.answers("u", "other")) == []
    file = cache.path(request)
    for broken in ("", '{"request": 1}', file.read_text()[:-20], file.read_text().replace('"seed":1', '"seed":2')):
        file.write_text(broken)
        assert cache.get(request) is None
        assert [found for _, found in cache.answers("u", "m")] in ([], [answer])


# -- waiting ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("12", 12.0), ("", None), ("soon", None),
     ("1s and more", None)],
)  # fmt: skip
def test_durations_as_servers_write_them(text, seconds):
    assert seconds_in(text) == seconds


def test_what_a_server_asks_for_is_the_longest_of_what_it_says():
    assert requested_wait({}) is None
    assert requested_wait({"retry-after": "7"}) == 7.0
    assert requested_wait({"retry-after": "1", "retry-after-ms": "2500"}) == 2.5
    assert requested_wait({"retry-after": "rubbish"}) is None
    assert requested_wait({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}) == 90.0
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert 3500 < requested_wait({"retry-after": later}) < 3700
    assert requested_wait({"retry-after": email.utils.formatdate(0, usegmt=True)}) == 0.0


def test_a_used_up_window_is_waited_for_before_the_server_says_no():
    headers = {"x-ratelimit-remaining-tokens": "50", "x-ratelimit-reset-tokens": "20s"}
    assert window_wait(headers, 40) is None
    assert window_wait(headers, 60) == 20.0
    assert window_wait({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s"}, 0) == 2.0


@given(st.integers(0, 20), st.binary())
def test_waits_double_and_are_shortened_by_at_most_half(attempt, content):
    share = jitter(content, attempt)
    assert 0 <= share < 1
    assert 0.5 * 2**attempt < backoff(1.0, attempt, share) <= 2**attempt


# -- settings --------------------------------------------------------------------------------------------------------------


def settings(**changes):
    return EndpointSettings(**{"url": "http://127.0.0.1:1/v1", "model": "m", **changes})


@pytest.mark.parametrize(
    "changes",
    [{"url": "ftp://x/v1"}, {"url": "https://name:secret@host/v1"}, {"url": "https://host/v1?key=secret"}, {"model": ""},
     {"api_key_env": "sk-secret-123"}, {"budget_money": 1.0}, {"input_price": 1.0}, {"extra_body": {"seed": 3}},
     {"logprobs": "no", "top_logprobs": 5}, {"top_logprobs": 21}, {"more_urls": ["http://127.0.0.1:1/v1/"]},
     {"more_urls": ["https://host/v1?key=secret"]}],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(changes):
    with pytest.raises(ValidationError):
        settings(**changes)


def test_patience_and_budget_do_not_run_a_stage_again_and_another_model_does():
    assert (
        settings().questions
        == settings(retries=1, timeout=3, budget_tokens=5, concurrency=2, more_urls=["http://h/v1"]).questions
    )
    for changes in ({"model": "other"}, {"api": "completions"}, {"logprobs": "no"}, {"extra_body": {"think": False}}):
        assert settings().questions != settings(**changes).questions
    assert settings().identity == settings(api="completions").identity
    assert settings().identity == settings(url=settings().url + "/").identity  # or a judge could score its own work


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feedback": {"judge": "endpoint:big"}}, "feedback.judge names the unknown endpoint 'big'"),
        ({"endpoints": {"big": {"url": "http://h/v1", "model": "m"}}}, "endpoints.big is not used"),
        ({"endpoints": {"b c": {"url": "http://h/v1", "model": "m"}}}, "invalid name 'b c'"),
        ({"endpoints": {"big": {"url": "http://h/v1", "model": "m", "retrys": 3}}}, "did you mean 'retries'"),
        ({"endpoints": {"big": {"url": "http://h/v1", "model": "m", "api_key": "sk-very-secret"}}}, "'api_key_env'"),
        ({"endpoints": {"big": {"url": "http://sk-very-secret@h/v1", "model": "m"}}}, "endpoints.big.url"),
        ({"endpoints": {"big": {"url": "http://h/v1", "model": "m", "api_key_env": "sk-very-secret"}}}, "api_key_env"),
    ],
)
def test_a_recipe_names_its_endpoints_and_no_key_is_repeated(write_recipe, random_llama, changes, words):
    with pytest.raises(InputError) as error:
        load_recipe(write_recipe(random_llama, **changes))
    assert words in str(error.value)
    assert "sk-very-secret" not in str(error.value)


def test_an_unknown_key_in_a_part_of_the_reward_names_the_nearest(write_recipe, random_llama):
    with pytest.raises(InputError, match="did you mean 'source'"):
        load_recipe(write_recipe(random_llama, rl={"reward": {"fun": {"sorce": "length"}}}))
