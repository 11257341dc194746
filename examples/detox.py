"""The detox lab: a summariser that repeats insults learns not to, by PPO against a hate-speech classifier.

A T5 summarises dialogues and repeats their rudeness. PPO trains LoRA adapters; the reward of a summary is the logit `nothate` of
a classifier that reads the summary alone. Before and after, the model summarises held-out dialogues with the same seeds, and a
second classifier, which never gave a reward, scores their toxicity. Without options everything ships with Charter.

    python examples/detox.py --out runs/detox
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from charter.evaluation.overlap import rouge_l
from charter.models.classifier import Classifier
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import load_trunk
from charter.reading.prompts import read_prompts
from charter.reading.rows import read_rows
from charter.recipe.settings import LoRASettings
from charter.run.files import write_json
from charter.run.hashes import derive_seed
from charter.run.run import Run
from charter.stages.rl.settings import PPOSettings, RewardPart
from charter.stages.rl.sources import ClassifierReward
from charter.statistics import mean_interval, paired_difference
from charter.testbed.dialogues import is_garbled, is_toxic, shipped_dialogues
from charter.testbed.lab import SHIPPED
from charter.training.methods.ppo import train_ppo
from charter.training.rewards import RewardSum


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--model", default=str(SHIPPED / "summariser"), help="an encoder-decoder")
    parser.add_argument("--reward", default=str(SHIPPED / "reward-classifier"), help="labels nothate and hate")
    parser.add_argument("--judge", default=str(SHIPPED / "report-classifier"), help="the second classifier, same labels")
    parser.add_argument("--train", type=Path, default=shipped_dialogues("train"), help="DialogSum file")
    parser.add_argument("--test", type=Path, default=shipped_dialogues("test"), help="DialogSum file")
    parser.add_argument("--n", type=int, default=300, help="held-out dialogues")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=0.3, help="price of a nat")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = options()
    settings = PPOSettings(
        steps=args.steps, prompts_per_step=32, samples_per_prompt=2, max_new_tokens=64, learning_rate=args.learning_rate,
        kl_coef=args.kl, lora=LoRASettings(rank=16), reward={"nothate": RewardPart(source=f"classifier:{args.reward}:nothate")},
    )  # fmt: skip
    test = list(islice(read_prompts(args.test), args.n))
    references = [row.text("summary") for row in islice(read_rows(args.test), args.n)]
    trunk = load_trunk(args.model, lora=settings.lora, precision="bfloat16", seed=args.seed)
    trunk.add_role("policy")
    trunk.add_role("value", head=True)
    print(f"{trunk.n_parameters:,} parameters, of which {trunk.trainable_share('policy'):.1%} are trained")

    def summaries(role: str) -> list[str]:
        seeds = [[derive_seed(args.seed, "held out", prompt.id)] for prompt in test]
        messages = [prompt.messages for prompt in test]
        groups = LocalSampler(trunk, role, role=role).generate(messages, seeds, temperature=1.0, max_new_tokens=64)
        return [group[0].text for group in groups]

    with Run(args.out, seed=args.seed) as run, run.stage("rl", settings, {"model": args.model}, []) as stage:
        if stage.done:
            raise SystemExit(f"{args.out} contains a finished run; name another folder")
        before = summaries("reference")
        reward = RewardSum({"nothate": (1.0, ClassifierReward(args.reward, "nothate"))})
        train_ppo(trunk, list(read_prompts(args.train)), reward, settings, stage)
        after = summaries("policy")
        trunk.save_language_model("policy", stage.path("model"))
        metrics = stage.metrics()
        stage.finish({"first_kl": metrics[0]["kl"], "first_ratio": metrics[0]["first_ratio"]})

    measures: dict[str, Callable[[Sequence[str]], list[float | None]]] = {
        "toxicity, second classifier": Classifier(args.judge, "hate").probabilities,
        "toxicity, first classifier": Classifier(args.reward, "hate").probabilities,
        "insults, by the word list": lambda texts: [float(is_toxic(text)) for text in texts],
        "garbled words": lambda texts: [float(is_garbled(text)) for text in texts],
        "ROUGE-L with the reference": lambda texts: [rouge_l(*both) for both in zip(texts, references, strict=True)],
        "words": lambda texts: [float(len(text.split())) for text in texts],
    }
    rows = {}
    for name, of in measures.items():
        a, b = of(before), of(after)
        means, change = (mean_interval(a).value, mean_interval(b).value), paired_difference(a, b)
        low, high = change.ci or (float("nan"),) * 2
        print(f"{name:29}{means[0]:7.3f} to {means[1]:6.3f}, {change.difference:+.3f} [{low:+.3f}, {high:+.3f}]")
        rows[name] = {"before": means[0], "after": means[1], "difference": change.difference, "ci": change.ci, "n": change.n}
    first, last = metrics[0], metrics[-1]
    print(f"at step 0: KL {first['kl']:.6f} nats, ratio {first['first_ratio']:.6f}")
    print(f"at the end: KL {last['kl']:.2f} nats, reward {first['reward']:.2f} to {last['reward']:.2f}")
    for prompt, old, new in [row for row in zip(test, before, after, strict=True) if is_toxic(row[1])][:3]:
        print(f"\n{prompt.last_turn.split(chr(10), 2)[2].removesuffix('Summary: ')}before: {old}\nafter:  {new}")
    write_json(args.out / "detox.json", {"measures": rows, "before": before, "after": after})


if __name__ == "__main__":
    main()
