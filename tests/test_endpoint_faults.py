"""A judge behind a server that fails in every way: nothing is lost, nothing is paid twice, no failed verdict is a score."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from charter.constitution.constitution import Constitution, Principle
from charter.endpoints.client import Client
from charter.endpoints.endpoint import EndpointSampler
from charter.endpoints.patience import backoff
from charter.endpoints.servers import Server as ServerOfPool
from charter.endpoints.settings import EndpointSettings
from charter.errors import GateError, InputError
from charter.evaluation.scorers import judge_scorer
from charter.judging.judge import LettersJudge, comparisons_of, judgment, pairs_of
from charter.judging.protocols import PROTOCOLS
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe, shipped
from charter.records import Filters, Generation, Judgment, Message, Prompt, Response
from charter.run.files import read_jsonl
from charter.serving.serve import open_port
from charter.testbed import __path__ as testbed
from conftest import write_some_prompts
from loopback import FAULTS, Faults, Handler, Server, canned, chat_answer, kill_at, model_server, serving

MODEL = Path(testbed[0]) / "model"
TINY_WAITS = {"backoff": 0.001, "longest_wait": 5.0, "concurrency": 4, "timeout": 60.0}
SECRET = "sk-never-to-be-seen-0123456789"


@pytest.fixture(scope="module")
def testbed_server():
    with model_server(MODEL, key=SECRET, name="judge") as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", SECRET)


def sampler(url, cache, **changes):
    values = {"url": url, "model": "judge", "api_key_env": "TEST_KEY", **TINY_WAITS, **changes}
    return EndpointSampler("judge", EndpointSettings(**values), cache)


def question(text):
    return (Message(role="user", content=text),)


def comparisons(n):
    prompts = [Prompt.ask(f"Hello! Can you explain how to hide lamp {i}?") for i in range(n)]
    groups = [
        [Response(prompt_id=p.id, model="m", text=text, finish_reason="stop", generation=Generation(seed=0, temperature=1))
         for text in ("Sure. First find a lamp.", "I am sorry, but I will not help with that.")] for p in prompts
    ]  # fmt: skip
    harm = Principle(id="harm", title="harm", preference="Which of the two replies does less harm?")
    rules = Constitution(title="one", principles=[harm])
    return comparisons_of(prompts, groups, rules, seed=0)


def test_reasons_of_a_judge_behind_a_server_are_those_of_the_model_itself(tmp_path, testbed_server):
    asked = comparisons(2)
    here, there = (PROTOCOLS["reasoned"](judge)(asked) for judge in (
        LocalSampler(load_trunk(str(MODEL)), "here"), sampler(testbed_server.url, tmp_path)))  # fmt: skip
    assert [a.margin for a in there] == pytest.approx([h.margin for h in here], abs=1e-3)
    assert all(a.margin is not None for a in there)


def test_margins_read_through_faults_are_those_of_the_model_itself(tmp_path, testbed_server):
    asked = comparisons(12)
    here = LettersJudge(LocalSampler(load_trunk(str(MODEL)), "here"))(asked)
    faults = Faults(testbed_server.url, [fault for fault in FAULTS if fault != "slow"])
    with serving(faults) as proxy:
        there = sampler(proxy.url, tmp_path)
        answers = LettersJudge(there)(asked)
        assert [a.margin for a in answers] == pytest.approx([h.margin for h in here], abs=1e-3)
        assert {"500", "429", "reset", "half-json", "half-body", "html"} & set(faults.met)
        # Every question was answered and counted once, though some were asked twice.
        assert len(proxy.seen) > 24
        assert len(set(faults.whole)) == there.client.account.requests == len(list(tmp_path.glob("*/*.json"))) == 24
        # A second judge with the same folder asks nothing.
        before = len(proxy.seen)
        again = sampler(proxy.url, tmp_path)
        assert [a.margin for a in LettersJudge(again)(asked)] == [a.margin for a in answers]
        assert len(proxy.seen) == before
        assert again.client.account.figures()["cached"] == 24
        assert proxy.most <= TINY_WAITS["concurrency"]


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "half-json", "half-body", "html"])
def test_each_fault_alone_is_outlived(tmp_path, testbed_server, fault):
    with serving(Faults(testbed_server.url, [fault])) as proxy:
        there = sampler(proxy.url, tmp_path)
        row = there.option_logprobs([question("Is a lamp harmful? Answer with Yes or No.")], [("Yes", "No")])[0]
        assert all(map(math.isfinite, row))
        assert len(proxy.seen) == 2
        assert there.client.account.repeated == 1


def test_an_answer_that_comes_too_slowly_is_asked_for_again(tmp_path):
    def half_at_first(server: Server, handler: Handler, _: bytes) -> None:
        whole = chat_answer("A", logprobs=[("A", -0.1), ("B", -3.0)])
        if len(server.seen) == 1:
            handler.reply(200, whole[:40], claim=len(whole))
            handler.until_client_leaves()
        else:
            handler.reply(200, whole)

    with serving(half_at_first) as server:
        there = sampler(server.url, tmp_path, timeout=0.5)
        assert there.option_logprobs([question("A or B?")], [("A", "B")]) == [[-0.1, -3.0]]
        assert len(server.seen) == 2
        assert there.client.account.figures()["unanswered_tokens"] > 0  # it may have been charged


def test_a_server_that_keeps_failing_ends_the_run_with_a_line_and_what_was_answered_stays(tmp_path):
    def two_only(server: Server, handler: Handler, _: bytes) -> None:
        if len(server.seen) <= 2:
            handler.reply(200, chat_answer("A", logprobs=[("A", -0.1), ("B", -3.0)]))
        else:
            handler.reply(500, b'{"error": {"message": "out of\\nmemory \\u001b[31m"}}')

    with serving(two_only) as server:
        there = sampler(server.url, tmp_path, concurrency=1, retries=2)
        with pytest.raises(InputError, match=r"failed 3 times: status 500 \(out of memory") as error:
            there.option_logprobs([question(str(i)) for i in range(5)], [("A", "B")] * 5)
        assert "\x1b" not in str(error.value)
        assert "\n" not in str(error.value)
        assert len(list(tmp_path.glob("*/*.json"))) == 2


def test_a_server_that_is_not_there_is_reported_after_three_tries(tmp_path):
    with serving(canned("A")) as server:
        url = server.url
    with pytest.raises(InputError, match=r"failed 3 times.*is the server running"):
        sampler(url, tmp_path).option_logprobs([question("?")], [("A", "B")])


def numbered(n):
    return [{"messages": [{"role": "user", "content": f"question {i}"}], "max_tokens": 4} for i in range(n)]


def echo(_: Server, handler: Handler, body: bytes) -> None:
    handler.reply(200, chat_answer(json.loads(body)["messages"][0]["content"]))


def test_a_slow_server_gets_fewer_requests_and_every_answer_comes_once_in_order(tmp_path):
    enough = threading.Event()

    def slow(server: Server, handler: Handler, body: bytes) -> None:
        enough.wait(timeout=60)
        echo(server, handler, body)

    def quick(server: Server, handler: Handler, body: bytes) -> None:
        if len(server.seen) == 30:
            enough.set()
        echo(server, handler, body)

    with serving(slow) as first, serving(quick) as second:
        there = sampler(first.url, tmp_path, more_urls=[second.url], concurrency=2)
        answers = there.client.ask(numbered(40))
        assert [answer.text for answer in answers] == [f"question {i}" for i in range(40)]
        assert len(first.seen) + len(second.seen) == 40 == there.client.account.requests
        assert len(second.seen) >= 30
        assert first.most <= 2
        assert second.most <= 2
        # Answers are kept under the first address: without the second server nothing is asked again.
        assert len(sampler(first.url, tmp_path).client.ask(numbered(40))) == 40
        assert len(first.seen) + len(second.seen) == 40


@pytest.mark.parametrize("fault", ["gone", "reset", "500", "asks for an hour"])
def test_where_one_of_two_servers_fails_the_other_answers_everything(tmp_path, fault):
    def failing(_: Server, handler: Handler, __: bytes) -> None:
        if fault == "reset":
            handler.reset()
        elif fault == "500":
            handler.reply(500, b"{}")
        else:
            handler.reply(429, b"{}", retry_after="3600")

    with open_port("127.0.0.1", 0) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with serving(failing) as bad, serving(echo) as good:
        there = sampler(nobody if fault == "gone" else bad.url, tmp_path, more_urls=[good.url], backoff=5.0)
        answers = there.client.ask(numbered(24))
        assert [answer.text for answer in answers] == [f"question {i}" for i in range(24)]
        assert len(good.seen) == 24
        assert len(bad.seen) <= TINY_WAITS["concurrency"]  # then it is left alone


def test_a_server_that_is_gone_does_not_end_a_long_run(tmp_path):
    """Requests that failed there are not overtaken by new ones until their tries are used up."""

    def late(_: Server, handler: Handler, body: bytes) -> None:
        threading.Event().wait(0.001)  # so that requests wait for it
        echo(_, handler, body)

    with open_port("127.0.0.1", 0) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with serving(late) as good:
        there = sampler(nobody, tmp_path, more_urls=[good.url], concurrency=2, retries=2, longest_wait=0.02)
        answers = there.client.ask(numbered(200))
        assert [answer.text for answer in answers] == [f"question {i}" for i in range(200)]
        assert len(good.seen) == 200


def test_a_request_that_fails_everywhere_ends_the_run_while_others_are_answered(tmp_path):
    def picky(_: Server, handler: Handler, body: bytes) -> None:
        handler.reply(500, b"{}") if b"question 3" in body else echo(_, handler, body)

    with serving(picky) as one, serving(picky) as other:
        there = sampler(one.url, tmp_path, more_urls=[other.url], retries=2, longest_wait=0.01)
        with pytest.raises(InputError, match="failed 6 times: status 500"):
            there.client.ask(numbered(9))
        assert there.client.account.requests >= 3


def test_many_failures_at_once_are_one_and_no_number_of_them_is_too_many():
    server = ServerOfPool("http://h/v1")
    began = [time.monotonic() for _ in range(2000)]
    assert [server.failed(one) for one in began].count(True) == 1
    for _ in range(2000):
        server.failed(time.monotonic())
    assert math.isfinite(backoff(1.0, server.failures, 0.5))


def test_where_all_servers_ask_for_too_long_a_wait_the_run_ends(tmp_path):
    def busy(_: Server, handler: Handler, __: bytes) -> None:
        handler.reply(429, b"{}", retry_after="3600")

    with serving(busy) as one, serving(busy) as other:
        there = sampler(one.url, tmp_path, more_urls=[other.url])
        with pytest.raises(InputError, match=r"requests a wait of 3600 s, longer than longest_wait \(5 s\)"):
            there.client.ask(numbered(8))
        assert one.seen
        assert other.seen


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"error": {"message": f"bad key {SECRET}"}}, r"status 401 \(bad key \[key\]\); the key is read from TEST_KEY"),
        (404, {"detail": "no such model"}, "status 404 .no such model.; check that the server calls the model .judge."),
        (400, {"error": {"message": "too long"}}, "status 400 .too long."),
        (429, {"error": {"message": "no money", "code": "insufficient_quota"}}, "status 429 .no money."),
        (302, {}, "set url to the address that it redirects to"),
    ],
)
def test_a_no_is_not_asked_for_twice_and_never_repeats_the_key(tmp_path, status, body, words):
    with serving(lambda _, h, __: h.reply(status, json.dumps(body).encode())) as server:
        with pytest.raises(InputError, match=words) as error:
            sampler(server.url, tmp_path).option_logprobs([question("?")], [("A", "B")])
        assert len(server.seen) == 1
        assert SECRET not in str(error.value)


def test_a_wait_that_is_longer_than_allowed_ends_the_run(tmp_path):
    with serving(lambda _, h, __: h.reply(429, b"{}", retry_after="3600")) as server:
        with pytest.raises(InputError, match=r"requests a wait of 3600 s, longer than longest_wait \(5 s\)"):
            sampler(server.url, tmp_path).option_logprobs([question("?")], [("A", "B")])
        assert len(server.seen) == 1


# -- no verdict ------------------------------------------------------------------------------------------------------------


def judged(answers, asked):
    return [judgment(c, p, rater_id="x", abstain_below=0.1) for c, p in zip(asked, answers, strict=True)]


def test_a_judge_that_writes_counts_only_where_it_writes_an_option_and_never_scores_otherwise(tmp_path):
    asked = comparisons(3)
    texts = ["A", "A", "B", "I cannot help with that.", "A", "(A)", "A"]  # the first shows: no log-probabilities
    with serving(canned(*texts)) as server:
        there = sampler(server.url, tmp_path, concurrency=1)
        answers = LettersJudge(there)(asked)
        assert there.gives_logprobs is False
        assert there.unread == 1
        assert [row.get("logprobs") for row in server.seen] == [True, *[None] * 6]
    assert [a.margin for a in answers] == [pytest.approx(3.0), None, pytest.approx(0.0)]
    stored = judged(answers, asked)
    assert [j.has_verdict for j in stored] == [True, False, True]
    assert stored[1].margin is None
    by_id = {r.id: r for c in asked for r in (c.first, c.second)}
    pairs = pairs_of(stored, {c.prompt.id: c.prompt for c in asked}, by_id)
    assert len(pairs) == 1  # A then B in the other order prefers; A both times is a tie
    assert pairs[0].weight == pytest.approx(1 / (1 + math.exp(-3)))


def test_tokens_that_are_no_option_are_no_verdict_for_judge_and_scorer(tmp_path):
    asked = comparisons(2)
    with serving(canned("Sorry", logprobs=[("Sorry", -0.1), ("I", -2.0)])) as server:
        there = sampler(server.url, tmp_path)
        assert [a.margin for a in LettersJudge(there)(asked)] == [None, None]
        assert there.unread == 4
        verdict = judge_scorer(there).score([asked[0].prompt], ["No."])[0]
        assert (verdict.harmful, verdict.helpful, verdict.helpfulness_level) == (None, None, None)


def test_filters_of_sampling_are_sent_with_texts_and_not_with_choices(tmp_path):
    answered = lambda _, handler, __: handler.reply(200, chat_answer("A", logprobs=[("A", -0.1), ("B", -3.0)]))  # noqa: E731
    with serving(answered) as server:
        there = sampler(server.url, tmp_path)
        there.generate([question("1")], [[5]], temperature=0.7, max_new_tokens=4, filters=Filters(top_p=0.9, top_k=40))
        there.option_logprobs([question("1")], [("A", "B")])
        text, choice = server.seen
    assert (text["temperature"], text["top_p"], text["top_k"]) == (0.7, 0.9, 40)
    assert not {"min_p"} & text.keys()
    assert not {"top_p", "top_k", "min_p"} & choice.keys()


def test_a_filter_in_the_extra_body_is_sent_to_the_settings_that_record_it():
    with pytest.raises(ValueError, match="extra_body cannot set 'top_p'; set it in sampling or in the stage"):
        EndpointSettings(url="http://127.0.0.1:1/v1", model="m", extra_body={"top_p": 0.9})


def test_what_the_filter_of_a_server_withholds_is_no_verdict_and_a_text_that_is_cut_off(tmp_path):
    refusal = b'{"error": {"code": "content_filter", "message": "no"}}'

    def sometimes(_: Server, handler: Handler, body: bytes) -> None:
        if "1" in json.loads(body)["messages"][0]["content"]:
            handler.reply(400, refusal)
        else:
            handler.reply(200, chat_answer("A", logprobs=[("A", -0.1), ("B", -3.0)]))

    with serving(sometimes) as server:
        there = sampler(server.url, tmp_path)
        rows = there.option_logprobs([question(str(i)) for i in range(3)], [("A", "B")] * 3)
        assert [math.isnan(row[0]) for row in rows] == [False, True, False]
        texts = there.generate([question("1"), question("2")], [[5], [6]], temperature=1.0, max_new_tokens=4)
        assert [group[0].finish_reason for group in texts] == ["length", "stop"]
        assert [body["seed"] for body in server.seen if "seed" in body] in ([5, 6], [6, 5])


def test_log_probabilities_that_are_demanded_and_missing_are_an_error(tmp_path):
    with serving(canned("A")) as server, pytest.raises(InputError, match="sends no log-probabilities; set its logprobs"):
        sampler(server.url, tmp_path, logprobs="yes").option_logprobs([question("?")], [("A", "B")])


def test_a_server_that_refuses_log_probabilities_is_asked_without(tmp_path):
    def plain(_: Server, handler: Handler, body: bytes) -> None:
        if "logprobs" in json.loads(body):
            handler.reply(400, b'{"error": {"message": "logprobs is not supported", "param": "logprobs"}}')
        else:
            handler.reply(200, chat_answer("No"))

    with serving(plain) as server:
        there = sampler(server.url, tmp_path)
        assert there.option_logprobs([question("a"), question("b")], [("Yes", "No")] * 2) == [[-3.0, 0.0]] * 2
        assert len(server.seen) == 3


@pytest.mark.parametrize("words", ["top_logprobs must be at most 5", "Requested logprobs of 20, greater than max allowed: 5"])
def test_a_server_that_lists_fewer_tokens_is_asked_for_as_many_as_it_lists(tmp_path, words):
    def few(_: Server, handler: Handler, body: bytes) -> None:
        if json.loads(body)["top_logprobs"] > 5:
            handler.reply(400, json.dumps({"error": {"message": words}}).encode())
        else:
            handler.reply(200, chat_answer("No", logprobs=[("No", -0.5), ("Yes", -1.0)]))

    with serving(few) as server:
        there = sampler(server.url, tmp_path)
        assert there.option_logprobs([question("a"), question("b")], [("Yes", "No")] * 2) == [[-1.0, -0.5]] * 2
        assert [body["top_logprobs"] for body in server.seen] == [20, 5, 5]


# -- budget, cache, key ----------------------------------------------------------------------------------------------------


def test_the_budget_is_kept_to_the_token_and_what_was_paid_for_is_not_paid_again(tmp_path):
    with serving(canned("A", logprobs=[("A", -0.1), ("B", -3.0)], tokens=(30, 1))) as server:
        conversations = [question(f"number {i}") for i in range(6)]
        money = {"input_price": 1e4, "output_price": 1e4, "concurrency": 3}  # 0.31 an answer
        there = sampler(server.url, tmp_path, budget_money=1.0, **money)
        with pytest.raises(GateError, match=r"may exceed budget_money 1 after 3 answers with 93 tokens for 0\.93"):
            there.option_logprobs(conversations, [("A", "B")] * 6)
        assert len(server.seen) == 3
        more = sampler(server.url, tmp_path, budget_tokens=250, **money)
        assert more.client.account.requests == 3
        assert len(more.option_logprobs(conversations, [("A", "B")] * 6)) == 6
        assert len(server.seen) == 6
        with pytest.raises(GateError, match="budget_tokens 200 after 6 answers with 186 tokens"):
            sampler(server.url, tmp_path, budget_tokens=200).option_logprobs([question("one more")], [("A", "B")])


def test_equal_questions_are_asked_once(tmp_path):
    with serving(canned("A", logprobs=[("A", -0.1), ("B", -3.0)])) as server:
        rows = sampler(server.url, tmp_path).option_logprobs([question("same")] * 9, [("A", "B")] * 9)
        assert rows == [[-0.1, -3.0]] * 9
        assert len(server.seen) == 1


def test_the_key_goes_into_the_header_and_nowhere_else(tmp_path, monkeypatch):
    with serving(canned(f"your key is {SECRET}")) as server:
        there = sampler(server.url, tmp_path)
        said = there.generate([question("?")], [[1]], temperature=1.0, max_new_tokens=4)
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
        assert said[0][0].text == "your key is [key]"
        with (
            serving(lambda _, h, __: h.reply(200, json.dumps({"error": SECRET}).encode())) as upset,
            pytest.raises(InputError, match=r"unreadable answer: choices: Field required \(\[key\]\)"),
        ):
            sampler(upset.url, tmp_path, retries=0).option_logprobs([question("?")], [("A", "B")])
        assert SECRET not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(InputError, match=r"endpoints\.judge\.api_key_env.*TEST_KEY is not set"):
        sampler(server.url, tmp_path)
    monkeypatch.setenv("TEST_KEY", "two words")
    with pytest.raises(InputError, match="is not a key") as error:
        sampler(server.url, tmp_path)
    assert "two words" not in str(error.value)


ASK = """
import sys
from pathlib import Path
from charter.endpoints.settings import EndpointSettings
from charter.endpoints.client import Client
settings = EndpointSettings(url=sys.argv[1], model="m", concurrency=1)
client = Client("x", settings, Path(sys.argv[2]))
body = {"temperature": 0.0, "max_tokens": 1}
print([a.text for a in client.ask([{**body, "messages": [{"role": "user", "content": str(i)}]} for i in range(8)])])
"""


def test_kill_minus_nine_loses_nothing_and_pays_nothing_twice(tmp_path):
    def echo(_: Server, handler: Handler, body: bytes) -> None:
        handler.reply(200, chat_answer(json.loads(body)["messages"][0]["content"]))

    process: list[subprocess.Popen] = []

    def start(url):
        process[:] = [subprocess.Popen([sys.executable, "-c", ASK, url, str(tmp_path)], stdout=subprocess.PIPE)]
        return process[0].communicate()[0].decode(), process[0].returncode

    with serving(kill_at(lambda: process[0].pid, 5, echo)) as server:
        out, code = start(server.url)
        assert (out, code) == ("", -signal.SIGKILL)
        assert len(list(tmp_path.glob("*/*.json"))) == 4
        out, code = start(server.url)
        assert (out.strip(), code) == (str([str(i) for i in range(8)]), 0)
        # The one that was under way was asked again, the four before it were not.
        assert len(server.seen) == 5 + 4


def test_a_client_needs_no_key_where_none_is_named(tmp_path):
    with serving(canned("hello")) as server:
        client = Client("x", EndpointSettings(url=server.url, model="m"), tmp_path)
        client.ask([{"messages": [], "max_tokens": 1}])
        assert "authorization" not in server.headers[0]


def test_a_server_of_other_make_gives_the_same_words(tmp_path):
    """`transformers serve`: no log-probabilities, so a choice is read from the text; greedy texts are those of the model here."""
    with open_port("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(MODEL), "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert any("Uvicorn running" in line for line in process.stderr), "it did not start"
            there = sampler(f"http://127.0.0.1:{port}/v1", tmp_path, model=str(MODEL))
            asked = comparisons(2)
            here = LocalSampler(load_trunk(str(MODEL)), "here")
            margins = [p.margin for p in LettersJudge(there)(asked)]
            assert there.gives_logprobs is False
            # Both orders written out: the sign of what is read here, or a tie where the two orders disagree.
            for margin, own in zip(margins, LettersJudge(here)(asked), strict=True):
                agree = (own.first_as_a > 0) == (own.first_as_b > 0)
                assert margin == pytest.approx(math.copysign(3.0, own.margin) if agree else 0.0)
            said = [question("How can I mend the car?"), question("How can I hide the lamp?")]
            values = {"temperature": 0.0, "max_new_tokens": 48}
            assert there.generate(said, [[0], [0]], **values) == here.generate(said, [[0], [0]], **values)
        finally:
            process.kill()


# -- whole runs ------------------------------------------------------------------------------------------------------------

SMALL = {
    "prompts.train": 20, "prompts.test": 8, "revise.prompts": 12, "sft.epochs": 1,
    "feedback.prompts": 24, "feedback.gate_pairs": 12, "feedback.max_new_tokens": 24, "revise.max_new_tokens": 24, "rl.steps": 2,
    "rl.prompts_per_step": 4, "rl.samples_per_prompt": 2, "rl.max_new_tokens": 16, "gates.override": True,
    "evaluation.max_new_tokens": 24, "endpoints.judge.backoff": 0.001, "endpoints.judge.api_key_env": "TEST_KEY",
}  # fmt: skip


def test_the_recipe_with_a_judge_behind_a_server_runs_to_the_end_through_faults(tmp_path, testbed_server):
    write_some_prompts(tmp_path / "prompts.jsonl", 20)
    faults = Faults(testbed_server.url, [fault for fault in FAULTS if fault != "slow"])
    with serving(faults) as proxy:
        sets = {**SMALL, "endpoints.judge.url": proxy.url, "prompts.files": f"['{tmp_path}/prompts.jsonl']"}
        recipe = load_recipe(shipped("recipes") / "judge-api.yaml", [f"{key}={value}" for key, value in sets.items()])
        report = run_recipe(recipe, tmp_path / "run", quiet=True)
        asked = len(proxy.seen)
        again = run_recipe(recipe, tmp_path / "run", until="feedback", quiet=True)
    assert len(proxy.seen) == asked
    assert all(stage["skipped"] for stage in again["stages"])
    assert {row["arm"] for row in report["metrics"]} == {"base", "sft", "policy"}
    judgments = list(read_jsonl(tmp_path / "run/feedback/judgments.jsonl", Judgment))
    assert {j.rater_id for j in judgments} == {"judge"}
    assert len({j.id for j in judgments}) == len(judgments)
    assert all(j.margin is not None for j in judgments)
    used = report["endpoints"]["judge"]
    assert used["requests"] == len(set(faults.whole)) <= 2 * (len(judgments) + 3 * 12)  # three protocols on the labelled pairs
    # More than what the proxy saw: a request may also meet a connection that was just closed under it.
    assert used["repeated"] >= asked - used["requests"] > 0
    written = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert SECRET.encode() not in written
    assert b"TEST_KEY" in written


def test_a_model_behind_a_server_can_be_generator_critic_judge_reward_and_scorer(tmp_path, write_recipe, testbed_server):
    one = {"url": testbed_server.url, "model": "judge", "api_key_env": "TEST_KEY", **TINY_WAITS}
    path = write_recipe(
        MODEL, endpoints={"one": one}, revise={"generator": "endpoint:one", "critic": "endpoint:one", "rounds": 1},
        feedback={"generator": "endpoint:one", "judge": "endpoint:one", "prompts": 12},
        rl={"steps": 1, "reward": {"kind": {"source": "judge:endpoint:one"}}},
        evaluation={"scorer": "judge:endpoint:one"}, prompts={"files": ["prompts.jsonl"], "train": 12, "test": 4},
    )  # fmt: skip
    recipe = yaml.safe_load(path.read_text())
    recipe["constitution"] = str(shipped("constitutions") / "demo.yaml")
    path.write_text(yaml.safe_dump(recipe))
    report = run_recipe(load_recipe(path), tmp_path / "run", until="rl", quiet=True)
    gates = {(gate["stage"], gate["name"]): gate for gate in report["gates"]}
    # One hand may not give the reward and write the report, and it is known by its address.
    assert gates["rl", "independent scorer"]["overridden"]
    assert gates["feedback", "independent scorer"]["overridden"]
    models = {r.model for r in read_jsonl(tmp_path / "run/revise/originals.jsonl", Response)}
    assert models == {"judge"}
    assert report["endpoints"]["one"]["requests"] > 50
    assert os.listdir(tmp_path / "run/endpoints") == ["one"]
