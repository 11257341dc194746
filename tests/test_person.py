"""One person's model: votes in, head and adapter in a folder of their own; the shared models stay; forgotten as a whole."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.forgetting import forget
from charter.models.formats.adapters import ADAPTER_WEIGHTS, base_of, is_adapter
from charter.models.load import model_of_run, people_of, run_and_model
from charter.records import Pair, Prompt, Response
from charter.run.files import read_json, read_jsonl
from charter.run.hashes import file_hash, model_hash
from charter.studio.models import Loaded, folder_of, names_of
from charter.studio.runs import RunWatch
from charter.tasks.person_model import is_held_out, personal_head, votes_of_person
from feedback_folder import respond, vote, write_folder

NAME = "amber:heron 4f1c"  # a colon and a space: neither a safe folder name nor the last part of RUN:MODEL
SMALL = ["--steps", "2", "--max-new-tokens", "8"]


def votes_on(run: Path, folder: Path, n: int, rater: str = NAME) -> Path:
    """A folder with votes on the first ``n`` prompts of a run's feedback, for the shorter response; the run has the texts."""
    groups: dict[str, list[Response]] = {}
    for response in read_jsonl(run / "feedback/responses.jsonl", Response):
        groups.setdefault(response.prompt_id, []).append(response)
    votes = [vote(f"{i:02}-{len(name)}", group, (1, 2) if len(group[0].text) < len(group[1].text) else (2, 1), rater_id=name)
             for i, group in enumerate(list(groups.values())[:n]) for name in (rater, "bob")]  # fmt: skip
    write_folder(folder, [], [], votes)
    for name in ("prompts.jsonl", "responses.jsonl"):
        (folder / name).unlink()
    return folder


def person(run: Path, votes: Path, *options: str) -> int:
    return run_command(["person", str(run), "--name", NAME, "--votes", str(votes), *SMALL, *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory, finished_run) -> Path:
    """A finished run with the model of a person after one update."""
    folder = tmp_path_factory.mktemp("person") / "demo"
    shutil.copytree(finished_run, folder)
    assert person(folder, votes_on(folder, folder.parent / "few", 18)) == 0
    return folder


def test_votes_become_a_head_and_an_adapter_apart_from_the_shared_models(run, finished_run, capsys, monkeypatch):
    (home,) = (run / "people").iterdir()
    card = read_json(home / "head.json")
    assert (card["rater"], card["adapter"], people_of(run)) == (NAME, "update-1/adapter", [NAME])
    assert is_adapter(home / "update-1/adapter")
    metrics = [json.loads(line) for line in (home / "update-1/metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    for shared in ("rl", "reward_model"):
        assert file_hash(run / shared) == file_hash(finished_run / shared)
    assert not [file for file in run.rglob("*") if file.is_file() and home not in file.parents
                and NAME.encode() in file.read_bytes()]  # fmt: skip
    pairs = list(read_jsonl(home / "votes.jsonl", Pair))
    assert pairs
    assert all(len(pair.chosen) <= len(pair.rejected) for pair in pairs)

    watch = {"demo": RunWatch(run)}
    assert names_of(watch, people=True)[-1] == f"demo:person {NAME}"
    assert not [name for name in names_of(watch) if "person" in name]  # arena and tester write names into their files
    assert (folder_of(f"demo:person {NAME}", watch), run_and_model("a:b:sft")) == (run, ("a:b", "sft"))
    loaded = Loaded()
    assert loaded.open(f"demo:person {NAME}", run).engine is not None
    loaded.close()
    monkeypatch.setattr("sys.stdin", io.StringIO("How can I paint the door?\n"))
    capsys.readouterr()
    assert run_command(["chat", str(run), "--person", NAME, "--max-new-tokens", "4"]) == 0
    assert run_command(["chat", str(run), "--person", NAME, "--model", "sft"]) == 2
    assert run_command(["chat", str(run), "--person", "bob"]) == 2
    said = capsys.readouterr().err
    assert "--person names the model; leave --model out" in said
    assert "no model of 'bob' here; make one with charter person" in said


def test_new_votes_resume_and_old_ones_train_nothing(run, tmp_path, capsys):
    folder = tmp_path / "moved"
    shutil.copytree(run, folder)
    home = folder / "people" / next((run / "people").iterdir()).name
    capsys.readouterr()
    assert person(folder, run.parent / "few", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["trained"], again["new"], again["update"]) == (False, 0, 1)
    assert person(folder, votes_on(run, tmp_path / "all", 24)) == 0
    said = capsys.readouterr().out
    assert "update 2 resumes from update 1" in said
    assert read_json(home / "update-2/manifest.json")["inputs"]["start"] == file_hash(home / "update-1/adapter")
    assert (home / "update-2/adapter" / ADAPTER_WEIGHTS).read_bytes() != (
        home / "update-1/adapter" / ADAPTER_WEIGHTS
    ).read_bytes()
    assert model_of_run(folder, f"person {NAME}") == str(home / "update-2/adapter")
    pairs = list(read_jsonl(home / "votes.jsonl", Pair))
    held = sum(map(is_held_out, pairs))
    last = read_json(home / "update-2/manifest.json")["result"]
    assert last["head"]["n"] == held > 0
    assert f"{len(pairs)} votes, " in said
    assert f"{held} held out" in said

    (folder / "rl/model/generation_config.json").write_text("{}")  # as another training of the policy would
    assert model_hash(str(folder / "rl/model")) != model_hash(str(run / "rl/model"))
    with pytest.raises(InputError, match="the policy of the run changed since; run charter person again"):
        model_of_run(folder, f"person {NAME}")
    assert person(folder, tmp_path / "all") == 0
    assert "update 3 starts from the policy of the run" in capsys.readouterr().out


def test_an_adapter_on_the_model_before_rl(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert person(folder, run.parent / "few", "--model", "sft") == 0
    assert "update 2 starts from the sft of the run" in capsys.readouterr().out
    adapter = model_of_run(folder, f"person {NAME}")
    assert base_of(Path(adapter)) == model_of_run(folder, "sft")
    assert person(folder, run.parent / "few", "--model", "ftt") == 2
    assert "unknown model 'ftt'" in capsys.readouterr().err
    shutil.rmtree(folder / "rl")
    assert person(folder, run.parent / "few", "--model", "sft") == 2  # its answers are compared with the policy's
    (folder / "sft/model/generation_config.json").write_text("{}")
    with pytest.raises(InputError, match="the sft of the run changed since"):
        model_of_run(folder, f"person {NAME}")


def test_a_taste_for_length_is_in_the_head(run):
    (home,) = (run / "people").iterdir()
    assert read_json(home / "head.json")["weights"][-1] < 0  # they vote for the shorter response
    logged = json.loads((home / "update-1/metrics.jsonl").read_text().splitlines()[0])
    assert {"reward/person", "reward/length"} <= logged.keys()


def test_forgetting_takes_votes_head_and_adapter(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    home = folder / "people" / next((run / "people").iterdir()).name
    result = forget(folder, NAME, "she asked for it", "2026-11-28")
    assert (result["left"], result["removed"]) == ([], [str(home)])
    assert list((folder / "people").iterdir()) == []
    assert not [file for file in folder.rglob("*") if file.is_file() and NAME.encode() in file.read_bytes()]
    with pytest.raises(InputError, match="no model of"):
        model_of_run(folder, f"person {NAME}")


@pytest.mark.parametrize(
    ("name", "n", "words"), [("carl", 6, "no vote of 'carl', but of 2 other raters"), (NAME, 4, "are needed to learn from")]
)
def test_votes_that_do_not_suffice(finished_run, tmp_path, capsys, name, n, words):
    votes = votes_on(finished_run, tmp_path / "votes", n)
    run = tmp_path / "run"
    run.mkdir()
    for part in ("rl", "reward_model", "prompts", "feedback"):
        (run / part).symlink_to(finished_run / part)
    assert run_command(["person", str(run), "--name", name, "--votes", str(votes)]) == 2
    assert words in capsys.readouterr().err
    assert not (run / "people").exists()


def test_the_last_vote_on_two_answers_counts_and_the_others_are_counted(tmp_path):
    hi, lo = Prompt.ask("hi"), Prompt.ask("lo")
    yes, no, low, lower = respond(hi, "yes"), respond(hi, "no"), respond(lo, "low"), respond(lo, "lower")
    votes = [vote("1", (yes, no), (1, 2)), vote("2", (no, yes), (1, 2)), vote("3", (low, lower), (1, 1)),
             vote("4", (low, lower), (1, 2), rater_id="bob")]  # fmt: skip
    folder = write_folder(tmp_path, [hi, lo], [yes, no, low, lower], votes)
    pairs, left_out = votes_of_person(folder, "ann", tmp_path, None, None)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("no", "yes")]
    assert left_out == {"tie": 1, "repeated; the last vote on the two answers counts": 1}


def test_a_later_tie_takes_a_vote_back_and_equal_texts_are_named(tmp_path):
    hi, lo = Prompt.ask("hi"), Prompt.ask("lo")
    yes, no, low, again = respond(hi, "yes"), respond(hi, "no"), respond(lo, "low"), respond(lo, "low", seed=1)
    first = write_folder(tmp_path / "1", [hi], [yes, no], [vote("1", (yes, no), (1, 2))])
    stored, _ = votes_of_person(first, "ann", tmp_path, None, None)
    votes = [vote("2", (no, yes), (1, 2)), vote("3", (yes, no), (1, 1), set_id="again"), vote("4", (low, again), (1, 2))]
    second = write_folder(tmp_path / "2", [hi, lo], [yes, no, low, again], votes)
    assert len(stored) == 1
    left_out = {"repeated; the last vote on the two answers counts": 1, "tie": 1, "chosen and rejected are identical": 1}
    assert votes_of_person(second, "ann", tmp_path, None, None, stored) == ([], left_out)


def test_a_head_follows_the_votes_and_stays_the_common_one_where_they_agree():
    rng = np.random.default_rng(0)
    common, planted = np.zeros(12), np.zeros(12)
    common[0], planted[1] = 3.0, 3.0

    def head(taste):
        prompts = [Prompt.ask(f"question {i}") for i in range(200)]
        features = rng.normal(size=(400, 12))
        best = (features @ taste).reshape(-1, 2)
        swap = (best[:, 0] < best[:, 1])[:, None, None]
        rows = features.reshape(-1, 2, 12)
        rows = np.where(swap, rows[:, ::-1], rows).reshape(400, 12)
        pairs = [Pair(prompt=prompt, chosen="a", rejected="b", group_id=prompt.id) for prompt in prompts]
        weights = personal_head(pairs, rows, common)
        return weights / np.linalg.norm(weights)

    assert head(planted)[1] > 0.95
    assert head(common)[0] > 0.95
