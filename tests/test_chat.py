"""A conversation through the terminal: turns are kept, what does not fit is dropped, nothing of a text is obeyed."""

import io
import json
import subprocess
import sys

import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.models.chat_template import encode_prompt
from charter.models.load import load_tokenizer, model_of_run
from charter.records import Filters, Message
from charter.tasks.conversation import chat_with, escape_controls, fitting


@pytest.fixture
def run(tmp_path, random_llama):
    """A run folder with base and fine-tuned model and no policy yet."""
    folder = tmp_path / "run"
    (folder / "sft").mkdir(parents=True)
    (folder / "sft/model").symlink_to(random_llama)
    (folder / "report.json").write_text(json.dumps({"recipe": {"model": str(random_llama)}}))
    return folder


def talk(monkeypatch, capsys, run, lines, **changes):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    chat_with(str(run), **{"model": "sft", "temperature": 0.0, "max_new_tokens": 8, "seed": 0, **changes})
    return capsys.readouterr()


def test_a_pipe_carries_answers_and_nothing_else(run):
    code = "import sys; from charter.commands.app import run_command; sys.exit(run_command(sys.argv[1:]))"
    found = subprocess.run(
        [sys.executable, "-c", code, "chat", str(run), "--model", "base", "--max-new-tokens", "5"],
        input="How can I mend the car?\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0
    assert "you>" not in found.stdout
    assert found.stdout.endswith("\n")
    assert "\x1b" not in found.stdout


def test_earlier_turns_count_and_reset_forgets_them(monkeypatch, capsys, run):
    first, other, second = "How can I burn the boat?\n", "How can I hide the lamp?\n", "How can I mend the car?\n"

    def last_answer(*lines):
        whole = talk(monkeypatch, capsys, run, "".join(lines), temperature=1.0).out
        before = talk(monkeypatch, capsys, run, lines[0], temperature=1.0).out
        assert whole.startswith(before)
        return whole.removeprefix(before)

    # The number of a turn seeds its answer, so only what was said before can make a difference.
    assert last_answer(first, second) != last_answer(other, second)
    assert last_answer(first, "/reset\n", second) == last_answer(other, "/reset\n", second)


@pytest.mark.parametrize("end", ["", "\n", "/quit\n", "   \n"])
def test_empty_line_quit_and_end_of_input_end(monkeypatch, capsys, run, end):
    first = "How can I mend the car?\n"
    after = "How can I hide?\n" if end else ""
    whole = talk(monkeypatch, capsys, run, first + end + after)
    assert whole.out == talk(monkeypatch, capsys, run, first).out


def test_the_seed_decides(monkeypatch, capsys, run):
    line = "How can I mend the car?\n"
    drawn = [talk(monkeypatch, capsys, run, line, temperature=1.0, seed=seed).out for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_filters_leave_the_likeliest_tokens(monkeypatch, capsys, run):
    line = "How can I mend the car?\n"
    greedy = talk(monkeypatch, capsys, run, line, temperature=0.0).out
    assert talk(monkeypatch, capsys, run, line, temperature=1.0, filters=Filters(top_p=1e-6)).out == greedy
    assert talk(monkeypatch, capsys, run, line, temperature=1.0).out != greedy


def test_oldest_turns_go_when_the_context_is_full(random_llama):
    tokenizer = load_tokenizer(str(random_llama))
    turns = [Message(role=role, content=f"{role} says {i}") for i in range(5) for role in ("user", "assistant")]
    asked = [*turns, Message(role="user", content="and now?")]
    whole = len(encode_prompt(tokenizer, asked))
    assert fitting(tokenizer, asked, None) == fitting(tokenizer, asked, whole) == asked
    for room in range(1, whole):
        kept = fitting(tokenizer, asked, room)
        assert kept == asked[len(asked) - len(kept) :]
        assert not kept or (kept[0].role == "user" and len(encode_prompt(tokenizer, kept)) <= room)
        longer = asked[len(asked) - len(kept) - 2 :]
        assert len(encode_prompt(tokenizer, longer)) > room or len(kept) == len(asked)


def test_a_line_that_cannot_fit_is_said_and_the_talk_goes_on(monkeypatch, capsys, run):
    found = talk(monkeypatch, capsys, run, "zq " * 600 + "\nHow can I mend the car?\n")
    assert "too long" in found.err
    assert found.out == talk(monkeypatch, capsys, run, "How can I mend the car?\n").out
    with pytest.raises(InputError, match="max-new-tokens 512"):
        talk(monkeypatch, capsys, run, "", max_new_tokens=512)


def test_a_line_with_a_nul_is_refused_in_words(monkeypatch, capsys, run):
    found = talk(monkeypatch, capsys, run, "a\x00b\n")
    assert "NUL" in found.err
    assert found.out == ""


def test_control_characters_are_spelled_out():
    assert escape_controls("a\x1b[2J\x9b\r\u202eb\tc\nd é 猫") == "a\\x1b[2J\\x9b\\r\\u202eb\tc\nd é 猫"


def test_a_model_that_is_not_there_yet_says_what_makes_it(run, tmp_path, random_llama, capsys):
    assert model_of_run(run, "base") == str(random_llama)
    assert model_of_run(run, "sft") == str(run / "sft/model")
    assert run_command(["chat", str(run)]) == 2
    assert f"charter rl RECIPE --out {run}" in capsys.readouterr().err
    for model in ("teacher", "base"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert run_command(["chat", str(tmp_path / "empty"), "--model", model]) == 2
        assert "this is not a run; leave --model out" in capsys.readouterr().err
    assert run_command(["chat", str(run), "--model", "teacher"]) == 2
    assert "use base, sft or policy" in capsys.readouterr().err
    assert run_command(["chat", str(tmp_path / "none")]) == 2
    assert "no such model folder" in capsys.readouterr().err


def test_a_plain_model_folder_talks_as_the_model_of_a_run_does(monkeypatch, capsys, run, random_llama):
    line = "How can I mend the car?\n"
    plain = talk(monkeypatch, capsys, random_llama, line, model=None)
    assert plain.out == talk(monkeypatch, capsys, run, line).out != ""
