"""Every path that only a GPU takes, through the real entry points at tiny size: `make gpu`. Skipped where CUDA is missing."""

import importlib.util
import math
import subprocess
import sys

import pytest
import torch

from charter.models.load import load_model
from charter.models.packing import Tokens
from charter.models.sampling import generate
from charter.models.sampling.generate import sample
from charter.models.trunk import REFERENCE, load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from charter.stages.rl.settings import METHODS
from charter.testbed.standins import save_stand_in
from conftest import save_random_model
from test_team import ENVIRONMENT
from test_vllm import wider

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU of CUDA is visible"),
]
PROMPTS = [[5, 9, 12, 40, 7], [3], [8, 8, 30, 31, 32, 33, 34, 35], [60, 61]]
SEEDS = [[17 * i + j for j in range(3)] for i in range(4)]
ROWS = [Tokens([3, 5, 7], [2, 4]), Tokens([3, 5, 7], [6]), Tokens([8], [9, 1, 2])]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def whole_run(path, out):
    """A recipe run to its report; the step log of RL, whose numbers must be finite."""
    report = run_recipe(load_recipe(path), out, quiet=True)
    assert report["provenance"]["device"] == DEVICE
    assert {row["arm"] for row in report["metrics"]} >= {"base", "sft", "policy"}
    rows = report["curves"]["rl"]
    assert rows
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    return rows


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_in_every_precision(method, precision, write_recipe, random_llama, tmp_path):
    rl = {"method": method} | ({"epochs": 1, "pairs_per_step": 8} if method == "dpo" else {})
    whole_run(write_recipe(random_llama, device=DEVICE, precision=precision, rl=rl), tmp_path / "run")


@pytest.mark.parametrize("changes", [
    {"training": {"lora": {"rank": 4}}}, {"gradient_checkpointing": True}, {"attention": "sdpa"},
    {"rl": {"method": "ppo", "value": "head"}},
])  # fmt: skip
def test_adapters_checkpointing_attention_and_a_value_head(changes, write_recipe, random_llama, tmp_path):
    whole_run(write_recipe(random_llama, device=DEVICE, precision="bfloat16", **changes), tmp_path / "run")


@needs("bitsandbytes")
def test_frozen_weights_in_4_bits(write_recipe, random_llama, tmp_path):
    changes = {"quantization": "nf4", "precision": "bfloat16", "training": {"lora": {"rank": 4}}}
    whole_run(write_recipe(random_llama, device=DEVICE, **changes), tmp_path / "run")


@needs("flash_attn")
def test_flash_attention_gives_the_log_probabilities_of_sdpa(tmp_path):
    place = str(save_stand_in(tmp_path / "model", "llama"))
    found = []
    for attention in ("sdpa", "flash_attention_2"):
        trunk = load_trunk(place, device=DEVICE, precision="bfloat16", attention=attention)
        found.append(trunk.logprobs(REFERENCE, trunk.pack(ROWS))[0])
    torch.testing.assert_close(*found, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_log_probabilities_of_packed_rows_are_those_of_a_cpu(architecture, tmp_path):
    place = str(save_random_model(tmp_path, architecture))
    found = []
    for device in ("cpu", DEVICE):
        trunk = load_trunk(place, device=device)
        assert trunk.fuses == (device == "cpu" and architecture != "gpt2")  # the written-out pass is a CPU's
        found.append(trunk.logprobs(REFERENCE, trunk.pack(ROWS))[0].cpu())
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("general", [False, True])
def test_samples_are_those_of_a_cpu_with_a_graph_and_without(general, random_llama, monkeypatch):
    """Greedy, since a rounding error turns a draw. Rows end one by one, so the graph is recorded more than once."""
    if general:
        monkeypatch.setattr(generate, "is_llama_like", lambda _: False)
    arguments = {"ends": [3, 8, 30], "max_new_tokens": 30, "temperature": 0.0}
    found = [sample(load_model(str(random_llama)).to(device), PROMPTS, SEEDS, **arguments) for device in ("cpu", DEVICE)]
    ids = [[[one.ids for one in group] for group in groups] for groups in found]
    assert ids[0] == ids[1]
    for ours, theirs in zip(*found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_out_of_memory_halves_the_prompts_that_are_sampled_together(random_llama, monkeypatch, caplog):
    """The decoder of more than two prompts asks for more memory than any GPU has."""
    model, inner = load_model(str(random_llama)).to(DEVICE), generate.make_decoder

    def greedy(model, prompts, *rest, **named):
        if len(prompts) > 2:
            torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
        return inner(model, prompts, *rest, **named)

    expected = sample(model, PROMPTS, SEEDS, ends=[3], max_new_tokens=8, temperature=0.0)
    monkeypatch.setattr(generate, "make_decoder", greedy)
    halved = sample(model, PROMPTS, SEEDS, ends=[3], max_new_tokens=8, temperature=0.0)
    assert [[one.ids for one in group] for group in halved] == [[one.ids for one in group] for group in expected]
    assert "out of memory; sampling 2 prompts at a time" in caplog.text


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("n", [1, 2])
def test_processes_with_a_gpu_each(parallel, n, write_recipe, random_llama, tmp_path):
    if n > torch.cuda.device_count():
        pytest.skip("needs two GPUs")
    path = write_recipe(random_llama, device="auto", parallel=parallel)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command = [*launcher, "-m", "charter", "run", str(path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert n == 1 or "2 processes (nccl, cuda)" in done.stderr


@needs("vllm")
def test_vllm_samples_on_a_gpu_and_gets_the_weights_of_every_step(write_recipe, tmp_path):
    model = wider(tmp_path / "model", "llama")
    rows = whole_run(write_recipe(model, device=DEVICE, precision="bfloat16", rl={"vllm": {"kv_cache_gb": 1}}), tmp_path / "run")
    assert max(row["sampler_gap"] for row in rows) < 0.1
