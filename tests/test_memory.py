"""Memory that does not suffice: the address space of a process is limited for real, and the run continues with less at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from charter.errors import MemoryFull
from charter.models.memory import is_out_of_memory
from charter.pipeline import run_recipe
from charter.plan.fit import smaller
from charter.plan.plan import plan_recipe
from charter.recipe.files import load_recipe
from charter.run.run import Run
from charter.stages.models import Models, within_memory
from charter.stages.sft.settings import SFTSettings
from conftest import HARMFUL, save_tokenizer

LIMITED = """
import ctypes, resource, sys
import torch, charter.commands.app, charter.pipeline, matplotlib.backends.backend_svg
from charter.models.trunk import REFERENCE, load_trunk
from charter.models.packing import Tokens
from charter.models.memory import keep_freed_memory
torch.set_num_threads(1)
trunk = load_trunk(sys.argv.pop(1))  # what libraries load when they are first used is there before the limit
trunk.add_role("policy")
trunk.logprobs("policy", trunk.pack([Tokens([5, 6], [7])]))[0].sum().backward()
torch.optim.AdamW(trunk.parameters("policy").values(), fused=True).step()
del trunk
keep_freed_memory()
ctypes.CDLL(None).mallopt(-3, 2**16)  # blocks of their own, so that the limit counts what is in use and no heap with holes
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)) * 2**20,) * 2)
charter.commands.app.main()
"""


def run_in(megabytes: int, recipe: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process that may take so much more than it has when everything is imported."""
    model = recipe.with_name("model")
    command = [sys.executable, "-c", LIMITED, str(model), str(megabytes), "run", str(recipe), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT on 64 rows of some 300 tokens, a step of 32 in one micro-batch, and a model wide enough for that to need a gigabyte."""
    folder = tmp_path_factory.mktemp("memory")
    vocabulary = save_tokenizer(folder / "model")
    torch.manual_seed(0)
    wide = GPT2Config(vocab_size=vocabulary, n_embd=192, n_layer=4, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(wide).save_pretrained(folder / "model")
    long = " ".join(HARMFUL)
    rows = [{"prompt": text, "completion": long[:300]} for text in HARMFUL * 3]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:64]))
    values = {
        "model": "model", "precision": "float32", "revise": None, "feedback": None, "rl": None,
        "sft": {"data": ["data.jsonl"], "epochs": 1, "responses_per_step": 32, "tokens_per_micro_batch": 32768},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "sft/metrics.jsonl").read_text().splitlines()]


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_step_made_again(recipe, tmp_path):
    run_recipe(load_recipe(recipe), tmp_path / "whole", quiet=True)
    # How much a process has beyond its libraries differs by a hundred megabytes from one start to the next.
    for megabytes in (400, 300, 200, 150):
        halved = run_in(megabytes, recipe, tmp_path / str(megabytes))
        if halved.returncode == 0 and "out of memory" in halved.stderr:
            break
    assert halved.returncode == 0, halved.stderr
    assert "out of memory: resuming from the last checkpoint with" in halved.stderr
    assert losses(tmp_path / str(megabytes)) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_what_fits_in_no_way_ends_with_a_proposal(recipe, tmp_path):
    loaded = load_recipe(recipe, ["sft.responses_per_step=640"])
    tried: list[int] = []

    def never(settings: SFTSettings) -> None:
        tried.append(settings.tokens_per_micro_batch)
        raise MemoryError

    nowhere = pytest.raises(MemoryFull, match="sft: not even a micro-batch of one row fits into memory")
    with Run(tmp_path / "run", quiet=True) as run, run.stage("sft", {}, {}, []) as stage, nowhere:
        within_memory(stage, loaded.sft, never, Models(run, loaded).release)
    assert tried == [2**n for n in range(15, 5, -1)]
    proposed = smaller(loaded)
    changed = load_recipe(recipe, re.findall(r"--set (\S+)", proposed))
    assert plan_recipe(changed)["peak_bytes"] <= plan_recipe(loaded)["peak_bytes"] * 2 / 3


def test_only_failed_allocations_are_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
