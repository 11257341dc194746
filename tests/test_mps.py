"""The GPU of a Mac: log-probabilities and a whole run, where torch sees one; one clear line where it sees none."""

import pytest
import torch

from charter.errors import InputError
from charter.models.load import pick_device
from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe

HAS_MPS = torch.backends.mps.is_available()
on_a_mac = pytest.mark.skipif(not HAS_MPS, reason="torch sees no GPU of a Mac")
ROWS = [Tokens([3, 5, 7], [2, 4]), Tokens([3, 5, 7], [6]), Tokens([8], [9, 1, 2])]


@pytest.mark.skipif(HAS_MPS, reason="torch sees the GPU of a Mac")
def test_without_one_the_setting_is_refused():
    with pytest.raises(InputError, match="torch sees no GPU of a Mac; set device to cpu or auto"):
        pick_device("mps")


@on_a_mac
def test_log_probabilities_are_those_of_a_cpu(random_llama):
    trunks = [load_trunk(str(random_llama), device=device) for device in ("cpu", "mps")]
    on_cpu, on_mps = (trunk.logprobs(REFERENCE, trunk.pack(ROWS))[0].cpu() for trunk in trunks)
    torch.testing.assert_close(on_mps, on_cpu, rtol=0, atol=1e-4)


@on_a_mac
@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_a_whole_run(method, write_recipe, random_llama, tmp_path):
    rl = {"method": method} | ({"epochs": 1, "pairs_per_step": 8} if method == "dpo" else {})
    report = run_recipe(load_recipe(write_recipe(random_llama, device="mps", rl=rl)), tmp_path / "run", quiet=True)
    assert report["provenance"]["device"] == "mps"
    assert {row["arm"] for row in report["metrics"]} >= {"base", "sft", "policy"}
