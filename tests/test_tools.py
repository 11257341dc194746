"""plan, show-tokens and chat, on a random model."""

import io
import json

import pytest
from conftest import save_random_model

from charter.chat import chat_with, model_folder, visible
from charter.cli import run_command
from charter.config import load_recipe
from charter.errors import InputError
from charter.models.load import load_model
from charter.plan import count_parameters, plan_recipe, plan_table, stage_tokens
from charter.show_tokens import first_batches, print_batches


def test_parameters_are_counted_from_the_headers(random_llama):
    assert count_parameters(random_llama) == load_model(str(random_llama)).num_parameters()


def test_a_plan_says_tokens_memory_and_time(random_llama, write_recipe):
    recipe = load_recipe(write_recipe(random_llama))
    figures = plan_recipe(recipe)
    assert [stage["name"] for stage in figures["stages"]][-2:] == ["rl", "evaluate"]
    assert figures["fits"]
    rl = figures["stages"][5]
    assert rl["sampled"] == 3 * 4 * 2 * 12 / 2  # steps, prompts, samples, half of max_new_tokens
    assert all(stage["seconds"] >= 0 and stage["peak_bytes"] > 0 for stage in figures["stages"])
    assert any("does NOT fit" in line for line in plan_table({**figures, "fits": False}))
    json.dumps(figures)


def test_ppo_is_planned_with_its_critic_and_epochs(random_llama, write_recipe):
    rloo = stage_tokens(load_recipe(write_recipe(random_llama)), 48, 20.0)[5]
    ppo = stage_tokens(load_recipe(write_recipe(random_llama, rl={"method": "ppo"})), 48, 20.0)[5]
    assert ppo["trained"] == 4 * rloo["trained"]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_what_is_shown_is_what_is_trained_on(tmp_path, write_recipe, pad_is_eos):
    model = save_random_model(tmp_path / "model", "llama", pad_is_eos=pad_is_eos)
    batches = first_batches(load_recipe(write_recipe(model)))
    assert list(batches) == ["revise", "sft", "feedback", "reward_model", "rl"]
    for name, rows in batches.items():
        for row in rows:
            assert len(row["ids"]) == len(row["pieces"]) == len(row["mask"])
            inside = [k for k, masked in enumerate(row["mask"]) if masked]
            assert inside == list(range(inside[0], len(row["ids"])))
            if name in ("reward_model", "rl"):
                assert row["reward_position"] == inside[-1]
            if name in ("sft", "reward_model"):
                assert row["ids"][-1] == 0  # the end of turn carries loss and is where the score is read
    assert [row["ids"][-1] != rows_b["ids"][-1] for row, rows_b in zip(batches["feedback"][::2], batches["feedback"][1::2],
                                                                        strict=True)] == [True] * 2  # fmt: skip


def test_the_marks_are_there_without_colour(capsys):
    row = {"ids": [1, 2, 3], "pieces": ["Hi", "[bold]", "<|end|>"], "mask": [False, True, True],
           "special": [False, False, True], "reward_position": 2}  # fmt: skip
    print_batches({"rl": [row]})
    assert "Hi[[bold]<|end|>▲]" in capsys.readouterr().out


def test_a_chat_goes_on_until_an_empty_line(tmp_path, random_llama, monkeypatch, capsys):
    (tmp_path / "report.json").write_text(json.dumps({"recipe": {"model": str(random_llama)}}))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/reset\nAgain: you\n\nnever read\n"))
    chat_with(tmp_path, "base", temperature=1.0, max_new_tokens=5, seed=0)
    out = capsys.readouterr().out
    assert out.count("base>") == 2


def test_a_long_chat_forgets_its_oldest_turns(tmp_path, random_llama, monkeypatch, capsys):
    (tmp_path / "report.json").write_text(json.dumps({"recipe": {"model": str(random_llama)}}))
    monkeypatch.setattr("sys.stdin", io.StringIO("How can I mend the car and the door? " * 6 + "\n" + ("again " * 20 + "\n") * 6))
    chat_with(tmp_path, "base", temperature=0.0, max_new_tokens=40, seed=0)
    assert capsys.readouterr().out.count("base>") == 7


def test_a_model_that_is_not_there_yet_is_named(tmp_path):
    with pytest.raises(InputError, match="no policy model yet"):
        model_folder(tmp_path, "policy")
    with pytest.raises(InputError, match="teacher"):
        model_folder(tmp_path, "teacher")
    assert run_command(["chat", str(tmp_path), "--model", "sft"]) == 2


def test_control_characters_of_a_model_are_spelled_out():
    assert visible("a\x1b[2Jb\nc\x07") == "a\\x1b[2Jb\nc\\x07"
