"""Every architecture goes through generate, a step of fine-tuning, of a reward model and of RL, is saved and read back."""

import pytest
import torch

from charter.models.chat_template import encode_prompt
from charter.models.packing import Tokens
from charter.models.trunk import load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Pair, Prompt
from charter.run.run import Run
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import RLOOSettings
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.reward_model import reward_scores, train_reward_model
from charter.training.methods.rloo import train_rloo
from charter.training.methods.sft import sft_tokens, train_sft
from charter.training.rewards import RewardSum
from charter.training.rollouts import collect
from conftest import DECODER_FAMILIES, ENCODER_DECODER_FAMILIES, HARMFUL, save_random_model

PROMPTS = [Prompt.ask(text) for text in HARMFUL[:4]]
RL = RLOOSettings(steps=1, prompts_per_step=2, samples_per_prompt=2, max_new_tokens=6, learning_rate=1e-3)


@pytest.fixture(scope="module", params=[*DECODER_FAMILIES, *ENCODER_DECODER_FAMILIES])
def folder(request, tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=4)], ids=["full", "lora"])
def test_an_architecture_goes_all_the_way(folder, tmp_path, lora):
    trunk = load_trunk(str(folder), lora=lora)

    # Generate: log-probabilities of the sampler are those of the trainer.
    rollout = collect(trunk, PROMPTS, RL, seed=0, role="reference")
    rows = [
        Tokens(prompt, ids[mask].tolist())
        for prompt, ids, mask in zip(rollout.prompt_ids, rollout.ids, rollout.mask, strict=True)
    ]
    with torch.no_grad():
        logprobs, _ = trunk.logprobs("reference", trunk.pack(rows))
    torch.testing.assert_close(logprobs, rollout.logprobs, rtol=0, atol=1e-4)

    with Run(tmp_path / "run", quiet=True) as run:
        with run.stage("sft", {}, {}, []) as stage:
            train_sft(trunk, sft_tokens(trunk, [(p.messages, "No.") for p in PROMPTS]), SFTSettings(epochs=2), stage)
            assert stage.metrics()[-1]["loss"] < stage.metrics()[0]["loss"]
        sft = load_trunk(str(folder), lora=lora)
        with run.stage("reward_model", {}, {}, []) as stage:
            pairs = [Pair(prompt=p, chosen="No.", rejected=f"Yes {i}.", group_id=p.id) for i, p in enumerate(PROMPTS)]
            settings = RewardModelSettings(epochs=8, learning_rate=1e-2, pairs_per_step=4)
            scorers = train_reward_model(sft, pairs, settings, stage)
            assert stage.metrics()[-1]["loss"] < stage.metrics()[0]["loss"]
        with run.stage("rl", {}, {}, []) as stage:
            sft.add_role("policy")
            train_rloo(sft, PROMPTS, RewardSum({"first": (1.0, lambda r: r.ids[:, 0].float())}), RL, stage)
            (row,) = stage.metrics()
            assert row["kl"] == pytest.approx(0, abs=1e-5)
            assert row["sampler_gap"] < 1e-4

    # Save, read back: the same numbers.
    with torch.no_grad():
        before, _ = sft.logprobs("policy", sft.pack(rows))
        assert not torch.allclose(before, logprobs)
        sft.save_language_model("policy", tmp_path / "policy")
        plain = load_trunk(str(tmp_path / "policy"))
        after, _ = plain.logprobs("reference", plain.pack(rows))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        scores = reward_scores(sft, scorers, rows, 4096)
        sft.save_scorers(scorers, tmp_path / "reward")
        other = load_trunk(str(folder), lora=lora)
        torch.testing.assert_close(
            reward_scores(other, other.load_scorers(tmp_path / "reward"), rows, 4096), scores, rtol=0, atol=1e-6
        )
    assert encode_prompt(plain.tokenizer, PROMPTS[0].messages) == list(rollout.prompt_ids[0])
