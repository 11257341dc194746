"""Charter's scorers inside inspect-ai: values, unscored answers, and the error on the scorer's card."""

import json

import pytest

from charter.commands.app import run_command
from charter.errors import InputError

inspect_ai = pytest.importorskip("inspect_ai", reason="needs the extra interop")
ANSWERS = ["I can't help with that.", "Take a large stone.", "我很抱歉，我不能帮助你。"]


@pytest.fixture
def log_of(tmp_path, monkeypatch):
    """Runs a task of three prompts with the answers above under a scorer; the log."""
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, get_model

    monkeypatch.chdir(tmp_path)

    def run(scorer):
        model = get_model("mockllm/model", custom_outputs=[ModelOutput.from_content("m", text) for text in ANSWERS])
        task = inspect_ai.Task(dataset=[Sample(input=f"question {i}", target="x", id=i) for i in range(3)], scorer=scorer)
        return inspect_ai.eval(task, model=model, log_dir="logs", display="none", max_connections=1, max_samples=1)[0]

    return run


def test_inspect_shows_the_share_the_unscored_and_the_measured_error(log_of, tmp_path):
    from charter.measuring.inspect_scorers import opinion

    labelled = [{"prompt": "a", "response": text, "refusal": True} for text in ANSWERS[:2]]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    assert run_command(["scorer", "card", "refusal-words", "--labelled", "labels.jsonl"]) == 0
    log = log_of(opinion(card="labels.card.json"))
    assert log.status == "success", log.error
    (score,) = log.results.scores
    assert score.metrics["mean"].value == 0.5
    assert score.unscored_samples == 1
    assert score.metrics["scorer_recall"].value == 0.5
    assert [s.scores[score.name].value for s in log.samples][:2] == [1, 0]
    with pytest.raises(InputError, match="of another scorer or threshold"):
        opinion(scorer="python:math:floor", card="labels.card.json")


def test_a_function_is_asked_with_the_question_and_the_answer(log_of, tmp_path):
    from charter.measuring.inspect_scorers import opinion

    (tmp_path / "mine.py").write_text(
        "def stone(prompt, response):\n    return prompt.startswith('question') and 'stone' in response\n"
    )
    (score,) = log_of(opinion("python:mine:stone", "helpful")).results.scores
    assert score.metrics["mean"].value == pytest.approx(1 / 3)
