"""Every JSONL file of a finished run is read by `datasets` as it is."""

import contextlib
import json

import pytest

from charter.cli import run_command
from conftest import write_tiny_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory, random_llama):
    folder = tmp_path_factory.mktemp("datasets")
    write_tiny_recipe(folder, random_llama, rl={"steps": 2}, evaluation={"scorer": "refusal-words", "best_of": 2})
    with contextlib.chdir(folder):
        assert run_command(["run", "recipe.yaml", "--out", "run", "--quiet"]) == 0
    return folder / "run"


def plain(value):
    """Without what is None, numbers to nine places: `datasets` writes a row whose mappings have free keys to ten places."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return round(value, 9) if isinstance(value, float) else value


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
        assert [plain(one) for one in loaded] == [plain(one) for one in rows], name
