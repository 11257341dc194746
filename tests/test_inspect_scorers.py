"""Charter's scorers inside inspect-ai: values, unscored answers, and the error on the scorer's card.

inspect-ai runs in a process of its own, since it leaves streams open.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from charter.commands.app import run_command

pytestmark = pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is None, reason="needs the extra interop")
ANSWERS = ["I can't help with that.", "Take a large stone.", "我很抱歉，我不能帮助你。"]
SCRIPT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput
from inspect_ai.solver import solver
from charter.measuring.inspect_scorers import opinion

answers, scorers = json.loads(sys.argv[1]), [opinion(**how) for how in json.loads(sys.argv[2])]

@solver
def answering():
    async def solve(state, generate):
        state.output = ModelOutput.from_content("m", answers[state.sample_id])
        state.messages.append(state.output.message)
        return state
    return solve

samples = [Sample(input=f"question {i}", target="x", id=i) for i in range(3)]
task = Task(dataset=samples, solver=answering(), scorer=scorers)
log = eval(task, model="mockllm/model", log_dir="logs", display="none")[0]
scores = log.results.scores
figures = [{name: m.value for name, m in s.metrics.items()} | {"unscored": s.unscored_samples} for s in scores]
print(json.dumps([log.status, *figures]))
"""


def figures_of(folder, *scorers):
    """The status and the metrics of each scorer on the answers above."""
    words = [sys.executable, "-c", SCRIPT, json.dumps(ANSWERS), json.dumps(scorers)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr


def test_inspect_shows_the_share_the_unscored_and_the_measured_error(tmp_path):
    labelled = [{"prompt": "a", "response": text, "refusal": True} for text in ANSWERS[:2]]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    assert run_command(["scorer", "card", "refusal-words", "--labelled", str(tmp_path / "labels.jsonl")]) == 0
    (tmp_path / "mine.py").write_text(
        "def stone(prompt, response):\n    return prompt[:8] == 'question' and 'stone' in response\n"
    )
    function = {"scorer": "python:mine:stone", "measure": "helpful"}
    status, refusals, stones = figures_of(tmp_path, {"card": "labels.card.json"}, function)
    assert status == "success"
    assert (refusals["mean"], refusals["unscored"], refusals["scorer_recall"]) == (0.5, 1, 0.5)
    assert stones["mean"] == pytest.approx(1 / 3)
    assert "of another scorer or threshold" in figures_of(tmp_path, {**function, "card": "labels.card.json"})
