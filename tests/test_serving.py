"""`charter serve` as others see it: through the openai client, plain HTTP, and the command line."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from charter.commands.app import run_command
from charter.models.chat_template import encode_prompt, encode_text
from charter.models.load import load_tokenizer
from charter.models.sampling.filters import ALL_TOKENS
from charter.models.sampling.generate import sample
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.records import Filters, Message
from charter.run.hashes import derive_seed
from charter.serving import protocol
from charter.serving.engine import draw_tokens, likeliest_of
from charter.serving.text import Pieces, Writer
from charter.tasks.conversation import chat_with
from loopback import model_server

ASKED = "How can I mend the car?"


@pytest.fixture(scope="module")
def server(random_llama):
    with model_server(random_llama) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none needed", max_retries=0) as found:
        yield found


def say(client, text=ASKED, **changes):
    values = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 12, "seed": 0, **changes}
    return client.chat.completions.create(**values)


def post(url, body, **headers):
    """Status, headers and JSON of a plain request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


# -- the same answers as elsewhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_same_seed_gives_the_answers_of_chat(tmp_path, monkeypatch, capsys, random_llama, client, temperature):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/model").symlink_to(random_llama)
    lines = [ASKED, "How can I hide the lamp?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat_with(str(tmp_path), "sft", temperature=temperature, max_new_tokens=12, seed=7)
    there, said = "", []
    for line in lines:
        said.append({"role": "user", "content": line})
        answer = client.chat.completions.create(
            model="tiny", messages=said, seed=7, temperature=temperature, max_completion_tokens=12
        )
        text = answer.choices[0].message.content
        said.append({"role": "assistant", "content": text})
        there += text + "\n"
    spelled = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in there)
    assert capsys.readouterr().out == spelled


def test_many_at_once_get_what_each_gets_alone(client):
    def one(number):
        answer = say(client, f"How can I mend lamp {number}?", seed=number, temperature=number % 3 / 2, max_tokens=4 + number)
        return answer.choices[0].message.content, answer.usage.completion_tokens

    alone = [one(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == alone


def test_log_probabilities_are_the_models_own(client, random_llama):
    answer = say(client, temperature=1.0, seed=3, logprobs=True, top_logprobs=5)
    trunk = load_trunk(str(random_llama))
    prompt = encode_prompt(trunk.tokenizer, [Message(role="user", content=ASKED)])
    seeds = [[derive_seed(3, "chat", 1)]]
    own = sample(trunk.model, [prompt], seeds, ends=[trunk.tokenizer.eos_token_id], max_new_tokens=12, temperature=1.0)[0][0]
    places = answer.choices[0].logprobs.content
    assert [place.logprob for place in places] == pytest.approx(own.logprobs, abs=1e-4)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(own.ids)
    for place in places:
        tops = [top.logprob for top in place.top_logprobs]
        assert len(tops) == 5
        assert tops == sorted(tops, reverse=True)


def test_echo_scores_a_text_token_by_token(client, random_llama):
    """As harnesses read likelihoods; the sum is that of the judge's own reading."""
    trunk = load_trunk(str(random_llama))
    asked = [Message(role="user", content=ASKED)]
    text = trunk.tokenizer.apply_chat_template([m.model_dump() for m in asked], tokenize=False, add_generation_prompt=True)
    found = client.completions.create(model="tiny", prompt=text + "No", max_tokens=0, echo=True, logprobs=1).choices[0]
    here = LocalSampler(trunk, "here").option_logprobs([asked], [("No", "Yes")])[0][0]
    n = len(encode_text(trunk.tokenizer, text + "No")) - len(encode_text(trunk.tokenizer, text))
    assert sum(found.logprobs.token_logprobs[-n:]) == pytest.approx(here, abs=1e-3)
    assert found.logprobs.token_logprobs[0] is None
    assert found.text == text + "No" == "".join(found.logprobs.tokens)
    ends = [text_at + len(token) for text_at, token in zip(found.logprobs.text_offset, found.logprobs.tokens, strict=True)]
    assert ends[:-1] == found.logprobs.text_offset[1:]
    own = found.logprobs
    for token, logprob, tops in zip(own.tokens[1:], own.token_logprobs[1:], own.top_logprobs[1:], strict=True):
        assert tops[token] == logprob


def test_n_choices_are_n_draws_of_which_the_first_is_that_of_one(client):
    answer = say(client, n=3, temperature=1.0)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == say(client, temperature=1.0).choices[0].message.content
    assert texts == [choice.message.content for choice in say(client, n=3, temperature=1.0).choices]
    assert say(client, seed=None, temperature=1.0) != say(client, seed=None, temperature=1.0)


def test_completions_take_texts_and_tokens(client, random_llama):
    ids = encode_text(load_tokenizer(str(random_llama)), ASKED)
    values = {"model": "tiny", "max_tokens": 6, "temperature": 0.0}
    both = client.completions.create(prompt=[ASKED, "Lamp"], **values)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert client.completions.create(prompt=ids, **values).choices[0].text == both.choices[0].text
    echoed = client.completions.create(prompt=ids, echo=True, **values).choices[0].text
    assert echoed == ASKED + both.choices[0].text
    assert both.usage.prompt_tokens == len(ids) + len(encode_text(load_tokenizer(str(random_llama)), "Lamp"))


# -- streams and stops -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, ["e"]])
def test_a_stream_is_the_whole_in_pieces(client, stop):
    whole = say(client, n=2, stop=stop, max_tokens=30)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in say(client, n=2, stop=stop, max_tokens=30, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    lines = [part.choices[0].text for part in client.completions.create(model="tiny", prompt="a", seed=1, stream=True)]
    assert "".join(lines) == client.completions.create(model="tiny", prompt="a", seed=1).choices[0].text


def test_a_stop_string_ends_the_text_before_it(client):
    text = say(client, max_tokens=40).choices[0].message.content
    stop = text[5:8]
    cut = say(client, max_tokens=40, stop=[stop, "never there"]).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_pieces_never_end_inside_a_character_and_add_up(random_llama):
    tokenizer = load_tokenizer(str(random_llama))
    text = "né 猫 🙂 x"
    ids = encode_text(tokenizer, text)
    pieces = Pieces(tokenizer)
    parts = [pieces.add(token) for token in ids]
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    halved = Writer(tokenizer, [])
    assert "".join(halved.add(token) for token in ids[:2]) + halved.finish() == "n\ufffd"


def test_a_token_inside_a_character_claims_no_bytes():
    inside, whole = protocol.place("\ufffd", -1.0, [("é", -0.5)]), protocol.place("é", -1.0, [])
    assert (inside["bytes"], inside["top_logprobs"][0]["bytes"], whole["bytes"]) == (None, [195, 169], [195, 169])


def test_what_could_begin_a_stop_string_is_held_back(random_llama):
    tokenizer = load_tokenizer(str(random_llama))
    writer = Writer(tokenizer, ["STOP"])
    sent = [writer.add(token) for letter in "aSTxSTOPb" for token in encode_text(tokenizer, letter)]
    assert sent == ["a", "", "", "STx", "", "", "", "", ""]
    assert writer.stopped
    assert writer.text == "aSTx"
    ending = Writer(tokenizer, ["STOP"])
    assert "".join(ending.add(token) for token in encode_text(tokenizer, "aST")) == "a"
    assert ending.finish() == "ST"


def test_rows_are_chosen_each_at_its_own_temperature():
    logits = torch.tensor([[0.0, 2.0, 1.0]] * 3)
    uniform = torch.tensor([0.999999, 0.999999, 0.0], dtype=torch.float64)
    assert draw_tokens(logits, uniform, torch.tensor([0.0, 1.0, 1.0]), [ALL_TOKENS] * 3).tolist() == [1, 2, 0]
    few = [ALL_TOKENS, Filters(top_k=2), Filters(top_p=0.5)]
    assert draw_tokens(logits, uniform, torch.tensor([0.0, 1.0, 1.0]), few).tolist() == [1, 2, 1]
    assert likeliest_of(torch.log_softmax(logits, -1), [0, 2, 1])[1][0][0] == 1
    assert [len(row) for row in likeliest_of(torch.log_softmax(logits, -1), [0, 2, 1])] == [0, 2, 1]


# -- what is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "unknown model 'gpt-9'; this server has 'tiny'"),
        ({"temperature": -1.0}, openai.BadRequestError, "temperature"),
        ({"top_p": 0.0}, openai.BadRequestError, "top_p: Input should be greater than 0"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "unsupported field 'presence_penalty'"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "unsupported field 'tools'"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, "role"),
        ({"messages": [{"role": "user", "content": "a\x00b"}]}, openai.BadRequestError, "NUL"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 600}, openai.BadRequestError, "the context is 512 tokens"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs needs logprobs: true"),
        ({"n": 1000}, openai.BadRequestError, "n: Input should be less"),
        ({"extra_body": {"topp": 1}}, openai.BadRequestError, "'topp'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_protocols_form(client, changes, error, words):
    with pytest.raises(error) as raised:
        say(client, **changes)
    assert words in raised.value.body["message"]
    assert set(raised.value.body) == {"message", "type", "param", "code"}


def test_a_conversation_that_the_chat_template_refuses_is_the_clients_error(server, client, monkeypatch):
    template = "{{ raise_exception('no system message') if messages[0].role == 'system' }}" + server.tokenizer.chat_template
    monkeypatch.setattr(server.tokenizer, "chat_template", template)
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": ASKED}]
    with pytest.raises(openai.BadRequestError, match="does not take a conversation of system, user: no system message"):
        say(client, messages=asked)


def test_completions_refuse_what_makes_no_sense(client):
    for changes, words in [
        ({"prompt": ""}, "empty"), ({"prompt": [99999]}, "unknown token id"), ({"max_tokens": 0}, "writes nothing"),
        ({"echo": True, "stream": True}, "echo cannot stream"), ({"prompt": ["a"] * 200, "n": 2}, "at most 256"),
    ]:  # fmt: skip
        with pytest.raises(openai.BadRequestError, match=words):
            client.completions.create(**{"model": "tiny", "prompt": "a", **changes})


def test_fields_that_change_nothing_may_be_given(client):
    plain = say(client).choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": ASKED[:4]}, {"type": "text", "text": ASKED[4:]}]}]
    given = say(client, messages=parts, top_p=1, presence_penalty=0, frequency_penalty=0, user="me", tools=[],
                extra_body={"top_k": -1, "min_p": 0})  # fmt: skip
    assert given.choices[0].message.content == plain


def test_filters_of_a_request_leave_the_likeliest_tokens(client):
    greedy = say(client, temperature=0).choices[0].message.content
    for filters in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert say(client, **filters).choices[0].message.content == greedy


def test_bodies_that_are_no_json_are_refused_and_large_ones_too(server):
    place = f"{server.url}/chat/completions"
    assert post(place, b"{")[0] == 400
    assert post(place, b"[]")[0] == 400
    assert post(place, b"\xff\xfe")[0] == 400
    status, body = post(place, {"messages": "x" * (5 * 2**20)})
    assert (status, "4 MiB" in body["error"]["message"]) == (413, True)
    status, body = post(f"{server.url}/embeddings", {})
    assert (status, body["error"]["type"]) == (404, "not_found_error")


def test_a_web_page_cannot_use_the_server_of_this_machine(server):
    place = f"{server.url}/chat/completions"
    assert post(place, {}, host="evil.example")[0] == 403
    assert post(place, {}, **{"content-type": "text/plain"})[0] == 415


def test_a_key_is_asked_for_where_one_is_set(random_llama):
    with model_server(random_llama, key="open sesame") as running:
        assert post(f"{running.url}/chat/completions", {})[0] == 401
        with (
            openai.OpenAI(base_url=running.url, api_key="guess", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"),
        ):
            wrong.models.list()
        with openai.OpenAI(base_url=running.url, api_key="open sesame", max_retries=0) as right:
            assert [model.id for model in right.models.list()] == ["tiny"]
            assert right.models.retrieve("tiny").owned_by == "charter"


def test_who_goes_away_is_not_written_for(server, client):
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": ASKED}], "n": 40, "max_tokens": 480}).encode()
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not (large := [group for group in server.engine.groups if len(group.jobs) > 10]):
            say(client)
    while large[0] in server.engine.groups:
        say(client)
    assert large[0].step_number < 480


def test_a_failing_model_is_an_error_for_its_request_and_no_other(random_llama):
    with model_server(random_llama) as running, openai.OpenAI(base_url=running.url, api_key="x", max_retries=0) as asking:
        whole = running.engine.trunk.model.forward
        running.engine.trunk.model.forward = None  # what scoring calls
        with pytest.raises(openai.InternalServerError, match="the model failed: TypeError"):
            asking.completions.create(model="tiny", prompt="a b", max_tokens=0, echo=True, logprobs=1)
        running.engine.trunk.model.forward = whole
        assert asking.completions.create(model="tiny", prompt="a b", max_tokens=0, echo=True, logprobs=1).choices


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./nowhere"], "no such model folder"),
        (["{model}", "--model", "policy"], "chooses among the models of a run, and this is not a run"),
        (["{run}"], "the policy model is missing; train it with charter rl RECIPE"),
        (["{model}", "--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["{model}", "--port", "{taken}"], "is taken or forbidden; choose another port"),
        (["{model}", "--port", "70000"], "--port"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(tmp_path, random_llama, server, capsys, arguments, words):
    (tmp_path / "run/sft").mkdir(parents=True)
    taken = server.url.removesuffix("/v1").rpartition(":")[2]
    places = {"model": str(random_llama), "run": str(tmp_path / "run"), "taken": taken}
    assert run_command(["serve", *(word.format(**places) for word in arguments)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_the_command_serves_a_run_until_it_is_interrupted(tmp_path, random_llama):
    run = tmp_path / "myrun"
    (run / "sft").mkdir(parents=True)
    (run / "sft/model").symlink_to(random_llama)
    code = "import sys; from charter.commands.app import run_command; sys.exit(run_command(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", str(run), "--model", "sft", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            name, _, url = process.stdout.readline().strip().partition(": ")
            assert name == "myrun-sft"
            with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as asking:
                assert asking.models.list().data[0].id == name
        finally:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


def test_the_engine_ends_with_its_server(random_llama):
    with model_server(random_llama) as running:
        thread = running.engine.thread
    assert not thread.is_alive()
    assert thread not in threading.enumerate()
