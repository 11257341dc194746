"""The same weights, responses and scores give the same PPO loss and gradients as TRL 1.12, the last with a PPO trainer.

Two updates on one batch, so that the second has a ratio other than 1. The responses are as long as the batch and hold no pad:
where one ends early TRL puts the score behind its end and counts one token more for the critic. `make peers` installs
TRL 1.12 aside and runs this.
"""

import copy
import warnings

import pytest
import torch

from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.training.advantages import gae, whiten
from charter.training.losses import clipped_policy_loss, clipped_value_loss, token_kl
from charter.training.rewards import at_last_token
from conftest import save_random_model

module = pytest.importorskip("trl.experimental.ppo.ppo_trainer")
pytestmark = pytest.mark.filterwarnings("ignore")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

RATE, KL, CLIP, VALUE_COEF, LAMBDA = 0.3, 0.2, 0.05, 0.4, 0.9


def moved(model, seed: int):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def test_ppo(tmp_path, monkeypatch):
    folder = save_random_model(tmp_path / "model", "llama")
    trunk = load_trunk(str(folder))
    trunk.add_role("policy")
    trunk.add_role("value", head=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = moved(copy.deepcopy(reference), 1)
    value, scorer = (
        moved(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32), seed)
        for seed in (2, 3)
    )
    trunk.copies["policy"].load_state_dict(policy.state_dict())
    trunk.copies["value"].model.load_state_dict(value.model.state_dict())
    trunk.heads["value"].load_state_dict(value.score.state_dict())

    prompts = torch.randint(5, 90, (4, 5), generator=torch.Generator().manual_seed(0)).tolist()
    config = PPOConfig(
        output_dir=str(tmp_path / "trl"), per_device_train_batch_size=4, gradient_accumulation_steps=1, num_mini_batches=1,
        num_ppo_epochs=2, total_episodes=4, response_length=6, temperature=1.0, kl_coef=KL, kl_estimator="k1", cliprange=CLIP,
        cliprange_value=0.2, vf_coef=VALUE_COEF, gamma=1.0, lam=LAMBDA, missing_eos_penalty=None, num_sample_generations=0,
        report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", seed=7,
    )  # fmt: skip
    sgd = torch.optim.SGD([*policy.parameters(), *value.parameters()], lr=RATE)
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=scorer, value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in prompts]),
        optimizers=(sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)),
    )  # fmt: skip
    seen: dict[str, list] = {"rollout": [], "scores": [], "losses": [], "gradients": []}

    def sampled(*arguments):
        found = batch_generation(*arguments)
        seen["rollout"].append(found[0])
        return found

    def rewarded(model, *arguments):
        found = get_reward(model, *arguments)
        if model is scorer:
            seen["scores"].append(found[1].clone())
        return found

    def backward(loss, **_):
        seen["losses"].append(loss.item())
        loss.backward()
        named = {f"policy.{k}": p for k, p in policy.named_parameters()} | {f"value.{k}": p for k, p in value.named_parameters()}
        seen["gradients"].append({k: p.grad.clone() for k, p in named.items() if p.grad is not None})

    batch_generation, get_reward = module.batch_generation, module.get_reward
    monkeypatch.setattr(module, "batch_generation", sampled)
    monkeypatch.setattr(module, "get_reward", rewarded)
    trainer.accelerator.backward = backward
    trainer.train()
    (rows,), (scores,) = seen["rollout"], seen["scores"]
    assert (rows[:, 5:] != tokenizer.pad_token_id).all()

    # Ours, on their responses and scores.
    packed = trunk.pack([Tokens(row[:5].tolist(), row[5:].tolist()) for row in rows])
    mask = packed.mask
    with torch.no_grad():
        old, base = (trunk.logprobs(role, packed)[0] for role in ("policy", REFERENCE))
        old_values = trunk.values("value", packed)
    rewards = at_last_token(scores, mask) - KL * token_kl(old, base, mask)
    advantages, returns = gae(rewards, old_values, mask, 1.0, LAMBDA)
    advantages = whiten(advantages, mask)
    ours = torch.optim.SGD([*trunk.parameters("policy").values(), *trunk.parameters("value").values()], lr=RATE)
    for step in range(2):
        policy_loss, stats = clipped_policy_loss(trunk.logprobs("policy", packed)[0], old, advantages, mask, CLIP)
        value_loss = clipped_value_loss(trunk.values("value", packed), old_values, returns, mask, 0.2)
        loss = policy_loss + VALUE_COEF * value_loss
        assert loss.item() == pytest.approx(seen["losses"][step], abs=1e-5)
        ours.zero_grad()
        loss.backward()
        compared = 0
        for role, model in (("policy", trunk.copies["policy"]), ("value", trunk.copies["value"])):
            for key, parameter in model.named_parameters():
                theirs = seen["gradients"][step].get(f"{role}.{key}")
                if parameter.grad is not None and theirs is not None:
                    torch.testing.assert_close(parameter.grad, theirs, rtol=1e-3, atol=1e-5)
                    compared += 1
        torch.testing.assert_close(trunk.heads["value"].weight.grad, seen["gradients"][step]["value.score.weight"],
                                   rtol=1e-3, atol=1e-5)  # fmt: skip
        assert compared >= 30
        ours.step()
    assert stats.clipped > 0
