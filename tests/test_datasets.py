"""Every JSONL file of a finished run is read by `datasets` as it is."""

import contextlib
import json
import shutil

import pytest

from charter.commands.app import run_command
from conftest import write_tiny_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory, random_llama, before_rl):
    folder = tmp_path_factory.mktemp("datasets")
    shutil.copytree(before_rl, folder / "run")
    write_tiny_recipe(folder, random_llama, rl={"steps": 2}, evaluation={"scorer": "refusal-words", "best_of": 2})
    with contextlib.chdir(folder):
        assert run_command(["run", "recipe.yaml", "--out", "run", "--quiet"]) == 0
    return folder / "run"


def same(a, b):
    """Equal without what is None; numbers to ten places, to which `datasets` writes a row whose mappings have free keys."""
    if isinstance(a, dict) and isinstance(b, dict):
        kept = [{key for key, one in row.items() if one is not None} for row in (a, b)]
        return kept[0] == kept[1] and all(same(a[key], b[key]) for key in kept[0])
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == (pytest.approx(b, abs=1e-10) if isinstance(b, float) else b)


@pytest.mark.filterwarnings("ignore")  # those of datasets are its own
def test_every_file_of_a_run_loads_with_every_row(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    files = {str(file.relative_to(finished)): file for file in finished.glob("*/*.jsonl")}
    assert {"prompts/prompts.jsonl", "revise/revisions.jsonl", "feedback/judgments.jsonl", "feedback/pairs.jsonl",
            "rl/rollouts.jsonl", "sft/metrics.jsonl", "evaluate/responses.best_of_n.jsonl"} <= files.keys()  # fmt: skip
    for name, file in files.items():
        loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(loaded) == len(rows), name
        assert same(list(loaded), rows), name
