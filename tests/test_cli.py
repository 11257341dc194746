"""Commands parse, call, and print where the result is: exit code 0 done, 1 a gate says no, 2 bad input."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from charter.commands.app import app, run_command
from charter.reading.prompts import read_prompts
from charter.recipe.files import shipped
from conftest import CONSTITUTION

SAMPLE = Path(__file__).parents[2] / "shared/data/hh-harmless-base.sample.jsonl.gz"
HEAVY = ("torch", "transformers", "peft", "numpy", "scipy", "matplotlib", "yaml")


def commands(command=None, path=()):
    """(path, command) of every command, groups left out."""
    command = command or get_command(app)
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))
    else:
        yield path, command


COMMANDS = dict(commands())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["reward", "train", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys; from charter.commands.app import run_command; code = run_command(sys.argv[1:]);"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules], code)"
    )
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "HEAVY [] 0"


def test_help_names_every_command(capsys):
    assert run_command(["--help"]) == 0
    text = capsys.readouterr().out
    for path in COMMANDS:
        assert f" {path[0]} " in text


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_help(path, capsys):
    command = COMMANDS[path]
    assert (command.help or "").strip().endswith((".", "ends.", "wrong.")), f"{' '.join(path)}: no sentence of help"
    for parameter in command.params:
        assert (getattr(parameter, "help", None) or "").strip(), f"{' '.join(path)}: {parameter.name} has no help"
    assert run_command([*path, "--help"]) == 0
    assert command.name in capsys.readouterr().out


def one_json_object(out: str) -> dict:
    found = json.loads(out)
    assert isinstance(found, dict)
    assert out.count("\n") == 1
    return found


@pytest.mark.parametrize("path", sorted(shipped("constitutions").glob("*.yaml")), ids=lambda path: path.name)
def test_the_constitutions_that_ship_have_no_errors(path, capsys):
    if "principles" not in yaml.safe_load(path.read_text(encoding="utf-8")):
        pytest.skip("holds worked examples, no principles")
    assert run_command(["constitution", "check", str(path), "--json"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert found["principles"] >= 1
    assert not [finding for finding in found["findings"] if finding["severity"] == "error"]


def test_a_constitution_with_an_error_is_exit_code_1(tmp_path, capsys):
    principle = {**CONSTITUTION["principles"][0], "preference": "Which of (A) and (B) is less harmful?"}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"title": "letters", "principles": [principle]}))
    assert run_command(["constitution", "check", str(path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert "names '(A)'" in one_json_object(out)["findings"][0]["words"]
    assert err == f"charter: {path}: the constitution has errors\n"


def test_a_list_of_sentences_becomes_a_constitution(tmp_path, capsys):
    (tmp_path / "c.txt").write_text("1. Be kind.\n2. Be honest.\n")
    out = tmp_path / "c.yaml"
    assert run_command(["constitution", "import", str(tmp_path / "c.txt"), "--out", str(out), "--json"]) == 0
    assert one_json_object(capsys.readouterr().out) == {
        "principles": 2, "out": str(out), "kind": "lines of text", "counts": {}, "left_out": {},
    }  # fmt: skip
    assert run_command(["constitution", "check", str(out)]) == 0


def test_a_gate_that_says_no_is_exit_code_1_and_leaves_a_report(tmp_path, write_recipe, random_llama, capsys):
    # Random words do no harm in the eyes of a scorer that knows refusals only: there is no room to improve.
    recipe = write_recipe(random_llama, gates={"override": False})
    out = tmp_path / "run"
    assert run_command(["run", str(recipe), "--out", str(out), "--until", "revise", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("charter: gate ")
    assert len(err.splitlines()) == 1
    report = json.loads((out / "report.json").read_text())
    assert report["stopped"] in err
    assert [gate["passed"] for gate in report["gates"]][-1] is False
    assert (out / "report.html").exists()

    assert run_command(["report", str(out), "--json"]) == 0
    assert one_json_object(capsys.readouterr().out)["stopped"] == report["stopped"]


def test_a_recipe_stops_after_the_stage_that_was_asked_for(tmp_path, write_recipe, random_llama, capsys):
    recipe, out = write_recipe(random_llama), tmp_path / "run"
    assert run_command(["prompts", "prepare", str(recipe), "--out", str(out), "--json", "--set", "prompts.train=5"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == ["prompts"]
    prompts = list(read_prompts(out / "prompts/prompts.jsonl"))
    assert sum(p.split == "train" and "benign" in p.tags for p in prompts) == 5
    assert run_command(["prompts", "prepare", str(recipe), "--out", str(out), "--quiet"]) == 0
    assert str(out / "prompts") in capsys.readouterr().out


def test_prompts_are_classified_by_a_model(tmp_path, random_llama, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(5)))
    out = tmp_path / "out.csv"
    arguments = ["prompts", "classify", str(tmp_path / "p.jsonl"), "--constitution", str(tmp_path / "c.yaml")]
    assert run_command([*arguments, "--model", str(random_llama), "--out", str(out), "--json"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert sum(found["principles"].values()) == found["prompts"] == 5
    assert {p.principle for p in read_prompts(out)} <= {"harmless", None}


def test_a_reward_model_is_trained_and_measured(tmp_path, random_llama, capsys):
    rows = [{"prompt": f"Lamp {n}?", "chosen": "No.", "rejected": f"Yes {n}."} for n in range(16)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "reward"
    arguments = ["reward", "train", str(tmp_path / "p.jsonl"), "--out", str(out), "--model", str(random_llama)]
    assert run_command([*arguments, "--precision", "float32", "--pairs-per-step", "4", "--json"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert found == json.loads((out / "metrics.json").read_text())
    assert (found["train_pairs"], found["n"], found["ties"]) == (12, 4, 0)
    assert found["baseline_shorter_wins"] == 1.0


def test_held_out_ties_are_no_part_of_the_accuracy(tmp_path, random_llama, capsys):
    rows = [{"prompt": f"Lamp {n}?", "chosen": f"Yes {n}." if n % 2 else "No.", "rejected": "No." if n % 2 else f"Yes {n}.",
             "p": 0.5 if n % 2 else 1} for n in range(24)]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["reward", "train", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "o"), "--model", str(random_llama)]
    assert run_command([*arguments, "--precision", "float32", "--pairs-per-step", "4", "--test-fraction", "0.5", "--json"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert (found["train_pairs"], found["n"] + found["ties"]) == (12, 12)
    assert found["ties"] > 0
    assert found["baseline_shorter_wins"] == 1.0  # a tie would be lost by the shorter one


def test_a_reward_model_is_trained_on_ratings_and_measured_beside_the_mean(tmp_path, random_llama, capsys):
    lines = ["prompt,response,score"] + [f"Lamp {n}?,{word} {n}.,{score}" for n in range(12)
                                         for word, score in (("Gladly", 5), ("No", 1))]  # fmt: skip
    (tmp_path / "r.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "reward"
    arguments = ["reward", "train", str(tmp_path / "r.csv"), "--out", str(out), "--model", str(random_llama), "--json"]
    options = ["--loss", "absolute", "--epochs", "6", "--learning-rate", "0.003", "--pairs-per-step", "6"]
    assert run_command([*arguments, *options]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert found == json.loads((out / "metrics.json").read_text())
    assert (found["train_ratings"], found["n"], found["n_clusters"]) == (18, 6, 3)
    assert found["baseline_mean"] == 2.0  # the mean is 3, and every rating is 2 away from it
    assert found["mean_absolute_error"] < 1.5
    assert found["spearman"] > 0.8
    (tmp_path / "same.csv").write_text("prompt,response,score\n" + "".join(f"Lamp {n}?,Yes.,3\n" for n in range(12)))
    assert run_command(["reward", "train", str(tmp_path / "same.csv"), "--out", str(tmp_path / "o"), "--loss", "squared"]) == 2
    assert "nothing to learn" in capsys.readouterr().err


def test_several_seeds_are_run_by_one_flag_and_all_are_shown(tmp_path, write_recipe, random_llama, before_rl, capsys):
    out = tmp_path / "seeds"
    shutil.copytree(before_rl, out / "seed-0")
    arguments = ["run", str(write_recipe(random_llama)), "--out", str(out), "--seeds", "2"]
    assert run_command([*arguments, "--json"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert found == json.loads((out / "seeds.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    row = next(row for row in found["metrics"] if (row["name"], row["arm"]) == ("kl", "policy"))
    values = [one["value"] for one in row["seeds"]]
    assert len(values) == 2
    assert row["mean"] == pytest.approx(sum(values) / 2)
    assert (row["low"], row["high"]) == (min(values), max(values))
    assert len((out / "seeds.csv").read_text().splitlines()) == 1 + sum(len(row["seeds"]) for row in found["metrics"])
    assert (out / "seed-1/report.html").exists()
    # An override that is taken back counts for stages that are finished too; a gate stops each seed and not the command.
    assert run_command([*arguments, "--set", "gates.override=false"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("seed ") == 2
    assert "2 of 2 seeds stopped at a gate" in captured.err


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE.name} is not beside the checkout")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_published_dialogues_come_in_as_prompts(tmp_path, capsys, suffix):
    out = tmp_path / f"prompts{suffix}"
    arguments = ["prompts", "import", str(SAMPLE), "--tag", "red_team", "--test-fraction", "0.25", "--limit", "40"]
    assert run_command([*arguments, "--out", str(out), "--json"]) == 0
    found = one_json_object(capsys.readouterr().out)
    assert found["written"] == 40
    assert found["read"] >= found["written"] + found["duplicates"]
    prompts = list(read_prompts(out))
    assert len({p.id for p in prompts}) == 40
    assert sum(p.split == "test" for p in prompts) == 10
    assert {p.tags for p in prompts} == {("red_team",)}
    assert all(p.messages[-1].role == "user" for p in prompts)
    if suffix == ".csv":
        with open(out, encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == 40
