"""The same weights and the same batch give the same loss and gradients as TRL's trainers. Needs the extra `bench`.

Each trainer is built as its users build it and asked for the loss of a batch that is handed to it; ours comes from the trunk and
the losses that the methods call. A model is a copy, so that neither sees the other's gradients.
"""

import copy
import warnings

import pytest
import torch

from charter.models.packing import Tokens
from charter.models.trunk import REFERENCE, load_trunk
from charter.stages.rl.settings import DPOSettings
from charter.training.advantages import group_advantages, rloo_advantages
from charter.training.losses import bradley_terry_loss, clipped_policy_loss, kl_penalty, reinforce_loss, sft_loss, token_weights
from charter.training.methods.dpo import pair_losses
from charter.training.preference_losses import PairLogprobs
from conftest import save_random_model

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        GRPOTrainer,
        RewardConfig,
        RewardTrainer,
        RLOOConfig,
        RLOOTrainer,
        SFTConfig,
        SFTTrainer,
    )

CHOSEN = [Tokens([5, 6, 7, 8], [9, 10, 0]), Tokens([12, 13], [14, 15, 16, 17, 0]), Tokens([20], [21, 0])]
REJECTED = [Tokens([5, 6, 7, 8], [11, 0]), Tokens([12, 13], [30, 31, 0]), Tokens([20], [40, 41, 42, 43, 44, 0])]
GROUP = [Tokens([5, 6, 7], [9, 10, 0]), Tokens([5, 6, 7], [11, 0]), Tokens([5, 6, 7], [50, 51, 52, 53]),
         Tokens([8, 9], [60, 0]), Tokens([8, 9], [61, 62, 0]), Tokens([8, 9], [63, 64, 65, 0])]  # fmt: skip
ADVANTAGES = torch.tensor([0.7, -1.2, 0.5, 1.1, -0.4, -0.7])
QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("peer"), "llama")


@pytest.fixture
def scene(folder, tmp_path):
    """Our trunk with a policy that has moved off the reference, the same policy and reference for TRL, a tokenizer, a place."""
    trunk = load_trunk(str(folder))
    trunk.add_role("policy", head=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trunk.copies["policy"].parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer = copy.deepcopy(plain)
    peer.load_state_dict(trunk.copies["policy"].state_dict())
    return trunk, peer, plain, AutoTokenizer.from_pretrained(folder), tmp_path


def padded(rows: list[Tokens]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, as TRL's collators pad them."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row.prompt, *row.response] + [1] * (width - len(row)) for row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    completion = torch.tensor([[0] * len(row.prompt) + [1] * len(row.response) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def split(rows: list[Tokens]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left and completions on the right, as GRPO and RLOO hold them."""
    p, c = max(len(row.prompt) for row in rows), max(len(row.response) for row in rows)
    return {
        "prompt_ids": torch.tensor([[1] * (p - len(row.prompt)) + list(row.prompt) for row in rows]),
        "prompt_mask": torch.tensor([[0] * (p - len(row.prompt)) + [1] * len(row.prompt) for row in rows]),
        "completion_ids": torch.tensor([list(row.response) + [1] * (c - len(row.response)) for row in rows]),
        "completion_mask": torch.tensor([[1] * len(row.response) + [0] * (c - len(row.response)) for row in rows]),
    }


def agree(trunk, ours: torch.Tensor, peer, theirs: torch.Tensor) -> None:
    """Loss and every gradient to 1e-5."""
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    policy = trunk.copies["policy"]
    mine = dict(zip(dict(policy.named_parameters()), torch.autograd.grad(ours, list(policy.parameters()), allow_unused=True),
                    strict=True))  # fmt: skip
    named = dict(peer.named_parameters())
    others = dict(zip(named, torch.autograd.grad(theirs, list(named.values()), allow_unused=True), strict=True))
    compared = 0
    for name, gradient in mine.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, others[name], rtol=1e-3, atol=1e-5)
            compared += 1
    assert compared >= 10


def test_sft(scene):
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a", "completion": "b"}] * 2)
    trainer = SFTTrainer(model=peer, args=SFTConfig(output_dir=str(place), max_length=None, **QUIET), train_dataset=data,
                         processing_class=tokenizer)  # fmt: skip
    inputs = padded(CHOSEN)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
    packed = trunk.pack(CHOSEN)
    logprobs, _ = trunk.logprobs("policy", packed)
    agree(trunk, sft_loss(logprobs, packed.mask), trainer.model, trainer.compute_loss(trainer.model, inputs))


def with_head(trunk, shape):
    """Role ``policy`` as a classifier of transformers with one label and the same head."""
    shape = copy.deepcopy(shape)
    shape.num_labels, shape.pad_token_id = 1, 1
    classifier = AutoModelForSequenceClassification.from_config(shape)
    classifier.model.load_state_dict(trunk.copies["policy"].model.state_dict())
    head = 0.3 * torch.randn(classifier.score.weight.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        classifier.score.weight.copy_(head)
        trunk.heads["policy"].weight.copy_(head)
    return classifier


@pytest.mark.parametrize("margin", [False, True])
def test_reward_model(scene, margin):
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"chosen": "a b", "rejected": "a c"}] * 2)
    classifier = with_head(trunk, peer.config)
    config = RewardConfig(output_dir=str(place), center_rewards_coefficient=0.01, max_length=None, **QUIET)
    trainer = RewardTrainer(model=classifier, args=config, train_dataset=data, processing_class=tokenizer)
    inputs = padded([*CHOSEN, *REJECTED])
    inputs.pop("completion_mask")
    margins = torch.tensor([0.5, 0.0, 1.5])
    if margin:
        inputs["margin"] = margins
    theirs = trainer.compute_loss(trainer.model, inputs)
    chosen, rejected = trunk.scores("policy", trunk.pack([*CHOSEN, *REJECTED])).chunk(2)
    ours = bradley_terry_loss(chosen, rejected, 1.0, margins if margin else 0.0, centering=0.01).mean()
    agree(trunk, ours, trainer.model, theirs)


@pytest.mark.parametrize(
    ("loss", "theirs", "smoothing"),
    [("dpo", "sigmoid", 0.0), ("robust", "robust", 0.1), ("ipo_per_token", "ipo", 0.0), ("hinge", "hinge", 0.0)],
)
def test_dpo_family(scene, loss, theirs, smoothing):
    trunk, peer, reference, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    config = DPOConfig(output_dir=str(place), beta=0.1, loss_type=[theirs], label_smoothing=smoothing, max_length=None, **QUIET)
    trainer = DPOTrainer(model=peer, ref_model=reference, args=config, train_dataset=data, processing_class=tokenizer)
    rows = [*CHOSEN, *REJECTED]
    other = trainer.compute_loss(trainer.model, padded(rows))
    packed = trunk.pack(rows)
    policy = trunk.logprobs("policy", packed)[0].sum(dim=1).chunk(2)
    with torch.no_grad():
        base = trunk.logprobs(REFERENCE, packed)[0].sum(dim=1).chunk(2)
    tokens = packed.mask.sum(dim=1).float().chunk(2)
    settings = DPOSettings(loss=loss, beta=0.1, label_smoothing=smoothing)
    ours = pair_losses(PairLogprobs(*policy, *base, *tokens), torch.ones(3), None, settings).mean()
    agree(trunk, ours, trainer.model, other)


def zero_reward(completions, **_):
    return [0.0] * len(completions)


@pytest.mark.parametrize(("theirs", "average"), [("grpo", "response"), ("dr_grpo", "constant"), ("bnpo", "token")])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_grpo(scene, theirs, average, beta):
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a"}] * 6)
    config = GRPOConfig(output_dir=str(place), loss_type=theirs, beta=beta, num_generations=3, per_device_train_batch_size=6,
                        max_completion_length=8, epsilon=0.2, **QUIET)  # fmt: skip
    trainer = GRPOTrainer(model=peer, reward_funcs=zero_reward, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    packed = trunk.pack(GROUP)
    mask = packed.mask
    logprobs, _ = trunk.logprobs("policy", packed)
    with torch.no_grad():
        reference, _ = trunk.logprobs(REFERENCE, packed)
    noise = 0.3 * torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(3))
    old = torch.where(mask, logprobs.detach() + noise, 0.0)  # some ratios are clipped
    inputs = split(GROUP) | {"advantages": ADVANTAGES, "old_per_token_logps": old, "ref_per_token_logps": reference,
                             "num_items_in_batch": mask.sum()}  # fmt: skip
    other = trainer.compute_loss(trainer.model, inputs)
    weights = token_weights(mask, average, n_tokens=int(mask.sum()), n_responses=6, max_new_tokens=8)
    loss, stats = clipped_policy_loss(logprobs, old, ADVANTAGES.unsqueeze(1), mask, 0.2, weights=weights)
    assert stats.clipped > 0
    estimator = "weighted_k3" if config.use_bias_correction_kl else "forward_kl"
    ours = loss + beta * (kl_penalty(logprobs, reference, old, mask, estimator) * weights).sum()
    agree(trunk, ours, trainer.model, other)


def test_rloo(scene):
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a"}] * 6)
    config = RLOOConfig(output_dir=str(place), num_generations=3, per_device_train_batch_size=6, max_completion_length=8, **QUIET)
    trainer = RLOOTrainer(model=peer, reward_funcs=zero_reward, args=config, train_dataset=data, processing_class=tokenizer)
    packed = trunk.pack(GROUP)
    logprobs, _ = trunk.logprobs("policy", packed)
    inputs = split(GROUP) | {"advantages": ADVANTAGES, "old_logps": logprobs.detach().sum(dim=1)}
    other = trainer.compute_loss(trainer.model, inputs)
    ours = reinforce_loss(logprobs, ADVANTAGES, packed.mask)
    policy = trunk.copies["policy"]
    mine = torch.autograd.grad(ours, list(policy.parameters()), allow_unused=True)
    others = torch.autograd.grad(other, list(trainer.model.parameters()), allow_unused=True)
    for a, b in zip(mine, others, strict=True):  # at ratio 1 the gradients agree; the values are -A and -A log π
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_advantages_are_those_of_both_trainers():
    scores = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.5, 0.5, 1.0, 0.0]])
    mean, std = scores.mean(1, keepdim=True), scores.std(1, keepdim=True)
    torch.testing.assert_close(group_advantages(scores, scale_by_std=True), (scores - mean) / (std + 1e-4))
    torch.testing.assert_close(rloo_advantages(scores), scores - (scores.sum(1, keepdim=True) - scores) / 3)


def batches(n: int, size: int = 4) -> list[list[tuple[Tokens, Tokens]]]:
    """Pairs with something to learn: the chosen response counts up from the prompt's last token, the rejected one down."""
    generator = torch.Generator().manual_seed(5)

    def pair() -> tuple[Tokens, Tokens]:
        start, length, turns = (int(torch.randint(*bounds, (1,), generator=generator)) for bounds in ((30, 60), (2, 5), (2, 7)))
        prompt = list(range(start, start + length))
        up = [prompt[-1] + i for i in range(1, turns + 1)]
        return Tokens(prompt, [*up, 0]), Tokens(prompt, [*[2 * prompt[-1] - i for i in up], 0])

    return [[pair() for _ in range(size)] for _ in range(n)]


def optimizer_of(parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)


def both_curves(ours, theirs, mine, others) -> tuple[list[float], list[float]]:
    """Thirty losses of each: ``ours(batch)`` and ``theirs(batch)``, each with an optimizer of its own on the same settings."""
    curves: tuple[list[float], list[float]] = ([], [])
    for batch in batches(30):
        for curve, loss_of, optimizer in zip(curves, (ours, theirs), (mine, others), strict=True):
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            curve.append(loss.item())
    return curves


STEPS_AGREE = 2e-5
"""Nats between two curves over thirty float32 steps: rounding that the steps carry on and enlarge."""


def test_thirty_steps_of_sft_follow_one_curve(scene):
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a", "completion": "b"}] * 2)
    trainer = SFTTrainer(model=peer, args=SFTConfig(output_dir=str(place), max_length=None, **QUIET), train_dataset=data,
                         processing_class=tokenizer)  # fmt: skip

    def ours(batch):
        packed = trunk.pack([chosen for chosen, _ in batch])
        return sft_loss(trunk.logprobs("policy", packed)[0], packed.mask)

    def theirs(batch):
        inputs = padded([chosen for chosen, _ in batch])
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
        return trainer.compute_loss(trainer.model, inputs)

    policy = trunk.copies["policy"]
    a, b = both_curves(ours, theirs, optimizer_of(policy.parameters()), optimizer_of(trainer.model.parameters()))
    assert a[-1] < 0.7 * a[0]
    assert a == pytest.approx(b, abs=STEPS_AGREE)


def test_thirty_steps_of_dpo_follow_one_curve(scene):
    trunk, peer, reference, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    config = DPOConfig(output_dir=str(place), beta=0.1, max_length=None, **QUIET)
    trainer = DPOTrainer(model=peer, ref_model=reference, args=config, train_dataset=data, processing_class=tokenizer)
    settings = DPOSettings(beta=0.1)

    def rows_of(batch):
        return [chosen for chosen, _ in batch] + [rejected for _, rejected in batch]

    def ours(batch):
        packed = trunk.pack(rows_of(batch))
        policy = trunk.logprobs("policy", packed)[0].sum(dim=1).chunk(2)
        with torch.no_grad():
            base = trunk.logprobs(REFERENCE, packed)[0].sum(dim=1).chunk(2)
        tokens = packed.mask.sum(dim=1).float().chunk(2)
        return pair_losses(PairLogprobs(*policy, *base, *tokens), torch.ones(len(batch)), None, settings).mean()

    def theirs(batch):
        return trainer.compute_loss(trainer.model, padded(rows_of(batch)))

    policy = trunk.copies["policy"]
    a, b = both_curves(ours, theirs, optimizer_of(policy.parameters()), optimizer_of(trainer.model.parameters()))
    assert a[-1] < 0.7 * a[0]
    assert a == pytest.approx(b, abs=STEPS_AGREE)


def test_thirty_steps_of_the_reward_model_follow_one_curve(scene):
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"chosen": "a b", "rejected": "a c"}] * 2)
    config = RewardConfig(output_dir=str(place), center_rewards_coefficient=0.01, max_length=None, **QUIET)
    trainer = RewardTrainer(model=with_head(trunk, peer.config), args=config, train_dataset=data, processing_class=tokenizer)

    def rows_of(batch):
        return [chosen for chosen, _ in batch] + [rejected for _, rejected in batch]

    def ours(batch):
        chosen, rejected = trunk.scores("policy", trunk.pack(rows_of(batch))).chunk(2)
        return bradley_terry_loss(chosen, rejected, 1.0, 0.0, centering=0.01).mean()

    def theirs(batch):
        inputs = padded(rows_of(batch))
        inputs.pop("completion_mask")
        return trainer.compute_loss(trainer.model, inputs)

    a, b = both_curves(ours, theirs, optimizer_of(trunk.parameters("policy").values()), optimizer_of(trainer.model.parameters()))
    assert a[-1] < 0.7 * a[0]
    assert a == pytest.approx(b, abs=STEPS_AGREE)


def test_thirty_steps_of_grpo_follow_one_curve(scene):
    """Groups of a right and a wrong response, sampled by the reference: ratios grow, are clipped, and the KL pulls back."""
    trunk, peer, _, tokenizer, place = scene
    data = Dataset.from_list([{"prompt": "a"}] * 8)
    config = GRPOConfig(output_dir=str(place), loss_type="grpo", beta=0.1, num_generations=2, per_device_train_batch_size=8,
                        max_completion_length=8, epsilon=0.2, **QUIET)  # fmt: skip
    trainer = GRPOTrainer(model=peer, reward_funcs=zero_reward, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    estimator = "weighted_k3" if config.use_bias_correction_kl else "forward_kl"
    advantages = group_advantages(torch.tensor([[1.0, 0.0]] * 4), scale_by_std=True).view(-1)

    def rows_of(batch):
        return [row for both in batch for row in both]

    def ours(batch):
        packed = trunk.pack(rows_of(batch))
        mask = packed.mask
        with torch.no_grad():
            reference, _ = trunk.logprobs(REFERENCE, packed)
        logprobs, _ = trunk.logprobs("policy", packed)
        weights = token_weights(mask, "response", n_tokens=int(mask.sum()), n_responses=8, max_new_tokens=8)
        loss, _ = clipped_policy_loss(logprobs, reference, advantages.unsqueeze(1), mask, 0.2, weights=weights)
        return loss + 0.1 * (kl_penalty(logprobs, reference, reference, mask, estimator) * weights).sum()

    def theirs(batch):
        packed = trunk.pack(rows_of(batch))
        with torch.no_grad():
            reference, _ = trunk.logprobs(REFERENCE, packed)
        inputs = split(rows_of(batch)) | {"advantages": advantages, "old_per_token_logps": reference,
                                          "ref_per_token_logps": reference, "num_items_in_batch": packed.mask.sum()}  # fmt: skip
        return trainer.compute_loss(trainer.model, inputs)

    a, b = both_curves(ours, theirs, optimizer_of(trunk.parameters("policy").values()), optimizer_of(trainer.model.parameters()))
    assert a[-1] < a[0] - 0.1
    assert a == pytest.approx(b, abs=STEPS_AGREE)
