"""KL and entropy of the answers of an arm, against distributions that are written out."""

import pytest
import torch

from charter.evaluation.arms import distances
from charter.models.packing import Tokens
from charter.models.trunk import load_trunk
from conftest import save_random_model

ROWS = [Tokens([5, 6, 7], [8, 9]), Tokens([5, 6, 7], [10]), Tokens([3], [4, 2, 6])]


@pytest.fixture(scope="module", params=["llama", "t5"])
def two(request, tmp_path_factory):
    """A model, and the same one with other weights."""
    folder = save_random_model(tmp_path_factory.mktemp("model"), request.param)
    trunk, other = load_trunk(str(folder)), load_trunk(str(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return trunk, other


def distributions(trunk, row, temperature):
    """log P of every token of the vocabulary before each response token of a row: (T, V), by one prefix at a time."""
    logprobs = []
    for t in range(len(row.response)):
        every = range(trunk.model.get_output_embeddings().weight.shape[0])
        rows = [Tokens(row.prompt, [*row.response[:t], token]) for token in every]
        values, _ = trunk.logprobs("reference", trunk.pack(rows), temperature=temperature)
        logprobs.append(values[:, t])
    return torch.stack(logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_distances_are_those_of_written_out_distributions(two, temperature):
    trunk, other = two
    found = distances(trunk, {"kl": other}, ROWS, 4096, temperature)
    for i, row in enumerate(ROWS[:1] if trunk.model.config.is_encoder_decoder else ROWS):
        own, base = distributions(trunk, row, temperature), distributions(other, row, temperature)
        k1 = (own - base)[range(len(row.response)), list(row.response)]
        assert found["kl"][i] == pytest.approx(k1.sum().item(), abs=1e-4)
        assert found["kl_k3"][i] == pytest.approx(((-k1).exp() - 1 + k1).sum().item(), abs=1e-4)
        assert found["kl_full"][i] == pytest.approx((own.exp() * (own - base)).sum().item(), abs=1e-4)
        assert found["entropy"][i] == pytest.approx(-(own.exp() * own).sum(dim=1).mean().item(), abs=1e-4)
    together = distances(trunk, {"kl": other}, ROWS, 1, temperature)  # a row at a time
    for name, values in found.items():
        assert together[name] == pytest.approx(values, abs=1e-4)


def test_a_model_is_at_no_distance_from_itself(two):
    found = distances(two[0], {"kl": two[0], "kl_from_sft": two[0]}, ROWS, 4096, 1.0)
    for name in ("kl", "kl_k3", "kl_full", "kl_from_sft", "kl_from_sft_full"):
        assert found[name] == [0.0] * len(ROWS)
