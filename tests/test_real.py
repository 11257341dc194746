"""The recipes on SmolLM2: their prompts, rewards and measures, the split of the votes and the picture."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from charter.commands.app import app
from charter.models.trunk import load_trunk
from charter.recipe.files import shipped
from charter.recipe.functions import load_function
from conftest import HARMFUL, save_random_model

ROOT = Path(__file__).parents[1]
TINY = ("precision=float32", "prompts.train=12", "prompts.test=6", "rl.steps=2", "rl.prompts_per_step=2", "rl.max_new_tokens=8",
        "evaluation.max_new_tokens=8", "gates.override=true")  # fmt: skip


def script(name: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name), *map(str, arguments)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(file: Path) -> list[dict[str, str]]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def of(name: str):
    """A function that the recipes name."""
    return load_function("smollm2", name, str(shipped("recipes")))


@pytest.mark.parametrize(("name", "counts"), [("angry-prompts", (1040, 560)), ("opinion-prompts", (400, 200))])
def test_the_prompts_are_those_of_the_script_and_all_different(name, counts, tmp_path):
    script("real_prompts.py", "--out", tmp_path)
    made, kept = rows(tmp_path / f"{name}.jsonl.gz"), rows(shipped("recipes") / f"{name}.jsonl.gz")
    assert made == kept
    assert len({row["prompt"] for row in kept}) == len(kept)
    assert tuple(sum(row["split"] == split for row in kept) for split in ("train", "test")) == counts


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("insulting", "You idiot, get out!", True),
        ("insulting", "You are so STUPID", True),
        ("insulting", "Hello, a classic assessment of the shell.", False),
        ("warm", "Thank you, that was lovely.", True),
        ("warm", "The train left at nine.", False),
        ("variety", "good good good good good", 0.2),
        ("variety", "one two three four five", 1.0),
        ("variety", "too short", None),
        ("variety", "", None),
    ],
)
def test_the_word_lists_and_the_variety(name, text, value):
    assert of(name)("", text) == value


def test_the_rewards_tell_an_insult_and_praise_apart():
    pytest.importorskip("profanity_check", reason="the extra [real] is not installed")
    pytest.importorskip("vaderSentiment", reason="the extra [real] is not installed")
    clean, rude = "Thank you for the lovely evening.", "Fuck off, you stupid bitch."
    assert of("not_offensive")("", clean) > 0.9 > 0.1 > of("not_offensive")("", rude)
    assert of("offensive")("", rude) == pytest.approx(1 - of("not_offensive")("", rude))
    assert of("sentiment")("", clean) > 0.5 > -0.5 > of("sentiment")("", rude)
    assert of("sentiment")("", "") == 0


def errors(verdict, labelled: list[dict]) -> tuple[int, int]:
    """Answers that are called insulting and are not, and answers that are and are not called so."""
    calls = [(bool(verdict(row["response"])), row["insulting"]) for row in labelled]
    return sum(call and not true for call, true in calls), sum(true and not call for call, true in calls)


def test_the_errors_of_both_scorers_on_answers_labelled_by_hand():
    """100 answers of SmolLM2 to the angry prompts at temperature .7. Insulting: it calls somebody by an insulting or vulgar word,
    in a quotation too. The figures stand in docs/real.md."""
    pytest.importorskip("profanity_check", reason="the extra [real] is not installed")
    labelled = rows(ROOT / "tests/data/insulting.jsonl")
    assert (len(labelled), sum(row["insulting"] for row in labelled)) == (100, 36)
    assert errors(lambda text: of("insulting")("", text), labelled) == (3, 1)
    assert errors(lambda text: of("offensive")("", text) > 0.5, labelled) == (1, 10)


def test_votes_are_split_by_dialogue(tmp_path):
    lines = [json.dumps({side: f"\n\nHuman: {question}\n\nAssistant: {side} {i}" for side in ("chosen", "rejected")})
             for question in HARMFUL * 4 for i in range(2)]  # fmt: skip
    (tmp_path / "hh.jsonl").write_text("\n".join(lines))
    script("split_votes.py", tmp_path / "hh.jsonl", "--out", tmp_path / "out")
    first, second = ((tmp_path / "out" / f"{name}.jsonl").read_text().splitlines() for name in ("votes", "second-votes"))
    asked = {line: {json.loads(row)["chosen"].split("\n\n")[1] for row in part} for line, part in (("a", first), ("b", second))}
    assert asked["a"] != set() != asked["b"]
    assert not asked["a"] & asked["b"]
    assert set(first) | set(second) <= set(lines)
    prompts = rows(tmp_path / "out/prompts.jsonl")
    train = {row["prompt"] for row in prompts if row["split"] == "train"}
    test = {row["prompt"] for row in prompts if row["split"] == "test"}
    assert {f"Human: {prompt}" for prompt in train} == asked["a"]
    assert not {f"Human: {prompt}" for prompt in test} & (asked["a"] | asked["b"])
    assert len(first) + len(second) + 8 * len(test) == len(lines)


def test_the_second_reward_model_scores_as_it_does_in_a_run(tmp_path, monkeypatch):
    from charter.models.chat_template import encode_prompt, encode_response
    from charter.models.packing import Tokens
    from charter.records import Message
    from charter.training.methods.reward_model import reward_scores

    monkeypatch.chdir(tmp_path)
    model = save_random_model(tmp_path / "cache/smollm2", "llama")
    votes = [{"prompt": q, "chosen": "Better not.", "rejected": "Take it."} for q in HARMFUL]
    (tmp_path / "votes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in votes))
    done = CliRunner().invoke(app, ["reward", "train", "votes.jsonl", "--model", str(model), "--max-tokens", "64", "--out",
                                    "runs/hh-votes", "--quiet"])  # fmt: skip
    assert done.exit_code == 0, done.output
    trunk = load_trunk(str(model), writes=False)
    scorers = trunk.load_scorers(tmp_path / "runs/hh-votes/train/model")
    ids = encode_prompt(trunk.tokenizer, [Message(role="user", content="Why?")])
    expected = reward_scores(trunk, scorers, [Tokens(ids, encode_response(trunk.tokenizer, "Better not."))], 512)
    assert of("second_reward")("Why?", "Better not.") == pytest.approx(expected.item(), abs=0.02)  # bfloat16 products


def test_one_picture_of_the_run_with_kl_and_the_run_without(tmp_path):
    pytest.importorskip("vaderSentiment", reason="the extra [real] is not installed")
    model = save_random_model(tmp_path / "model", "llama")
    for name, kl in (("kind", 0.05), ("free", 0)):
        sets = [part for text in (*TINY, f"model={model}", f"rl.kl_coef={kl}") for part in ("--set", text)]
        done = CliRunner().invoke(app, ["run", "smollm2-kind", "--out", str(tmp_path / name), "--quiet", *sets])
        assert done.exit_code == 0, done.output
    script("kind_picture.py", tmp_path / "kind", tmp_path / "free", "--out", tmp_path / "kind.png")
    assert (tmp_path / "kind.png").read_bytes().startswith(b"\x89PNG")
