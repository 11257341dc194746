"""Write recipes.md from the settings classes: python docs/recipes.py."""

from pathlib import Path

import yaml

from charter.endpoints.settings import EndpointSettings
from charter.recipe.recipe import GateSettings, Recipe, SharedSampling, SharedTraining
from charter.recipe.settings import LoRASettings, Settings
from charter.stages.evaluate.settings import EvaluationSettings, MeasureSettings
from charter.stages.feedback.settings import ContrastSettings, FeedbackSettings
from charter.stages.prompts.settings import PromptSettings
from charter.stages.revise.settings import ReviseSettings
from charter.stages.reward_model.settings import RewardModelSettings
from charter.stages.rl.settings import (
    CostSettings,
    DPOSettings,
    GoldSettings,
    GRPOSettings,
    ILQLSettings,
    OnlineDPOSettings,
    PPOSettings,
    RewardPart,
    RLOOSettings,
    StopSettings,
    VLLMSettings,
)
from charter.stages.sft.settings import SFTSettings

HEAD = """# Recipes

A recipe is a YAML file; `charter run RECIPE --set rl.steps=20` changes a setting. An unknown key is an error that names the
nearest one. `null` for `revise`, `sft`, `feedback`, `rl` or `evaluation` leaves the stage out. Charter looks for files beside the
recipe; `package:NAME/PATH` is a file inside an installed package.

## First level

Most recipes need only these settings. [A run of your own](own-run.md) shows the command that writes such a recipe for your
case.

| setting | example | meaning |
|---|---|---|
"""

# (dotted key, an example); `rl.` keys are those of PPO unless only another method has them.
FIRST_LEVEL = (
    ("title", "title: Our first run"),
    ("model", "model: Qwen/Qwen2.5-0.5B-Instruct"),
    ("constitution", "constitution: principles.yaml"),
    ("seed", "seed: 1"),
    ("precision", "precision: float32"),
    ("quantization", "quantization: nf4"),
    ("training.lora", "training: {lora: {rank: 16}}"),
    ("training.tokens_per_micro_batch", "training: {tokens_per_micro_batch: 2048}"),
    ("sampling.temperature", "sampling: {temperature: 0.8}"),
    ("sampling.top_p", "sampling: {top_p: 0.95}"),
    ("sampling.max_new_tokens", "sampling: {max_new_tokens: 256}"),
    ("endpoints.NAME.url", "endpoints: {judge: {url: 'http://localhost:8000/v1', model: judge-7b}}"),
    ("endpoints.NAME.model", "endpoints: {judge: {url: 'http://localhost:8000/v1', model: judge-7b}}"),
    ("endpoints.NAME.api_key_env", "endpoints: {judge: {url: 'https://host/v1', model: big, api_key_env: JUDGE_KEY}}"),
    ("prompts.files", "prompts: {files: [prompts.jsonl]}"),
    ("prompts.red_team", "prompts: {red_team: [harmful.jsonl]}"),
    ("prompts.benign", "prompts: {benign: [harmless.csv]}"),
    ("revise.rounds", "revise: {rounds: 1}"),
    ("revise.prompts", "revise: {prompts: 200}"),
    ("sft.data", "sft: {data: [examples.jsonl]}"),
    ("sft.epochs", "sft: {epochs: 2}"),
    ("sft.learning_rate", "sft: {learning_rate: 0.0001}"),
    ("feedback.raters", "feedback: {raters: human}"),
    ("feedback.judge", "feedback: {judge: 'endpoint:judge'}"),
    ("feedback.prompts", "feedback: {prompts: 400}"),
    ("feedback.responses_per_prompt", "feedback: {responses_per_prompt: 4}"),
    ("feedback.labelled_pairs", "feedback: {labelled_pairs: known.jsonl}"),
    ("feedback.pairs", "feedback: {pairs: [pairs.jsonl]}"),
    ("reward_model.epochs", "reward_model: {epochs: 1}"),
    ("rl.method", "rl: {method: grpo}"),
    ("rl.steps", "rl: {steps: 200}"),
    ("rl.samples_per_prompt", "rl: {samples_per_prompt: 8}"),
    ("rl.learning_rate", "rl: {learning_rate: 0.00001}"),
    ("rl.kl_coef", "rl: {kl_coef: 0.1}"),
    ("rl.reward", "rl: {reward: {reward_model: {}, brevity: {source: length, weight: -0.01}}}"),
    ("rl.beta", "rl: {method: dpo, beta: 0.05}"),
    ("evaluation.scorer", "evaluation: {scorer: 'python:mine:score'}"),
    ("evaluation.measures", "evaluation: {measures: {words: {source: 'python:mine:words', better: lower}}}"),
    ("evaluation.best_of", "evaluation: {best_of: 4}"),
)

SECOND = """
## Second level: every setting

`training` and `sampling` set a value for all stages that read it; a stage's own setting overrides it. A test checks
this page against the settings classes; `python docs/recipes.py` writes the page.
"""

SECTIONS = [
    ("The top", Recipe), ("training", SharedTraining), ("sampling", SharedSampling), ("endpoints.NAME", EndpointSettings),
    ("prompts", PromptSettings), ("gates", GateSettings), ("revise", ReviseSettings), ("sft", SFTSettings),
    ("feedback", FeedbackSettings), ("reward_model", RewardModelSettings), ("rl, method: ppo", PPOSettings),
    ("rl, method: rloo", RLOOSettings), ("rl, method: grpo", GRPOSettings), ("rl, method: dpo", DPOSettings),
    ("rl, method: online_dpo", OnlineDPOSettings), ("rl, method: ilql", ILQLSettings), ("rl.vllm", VLLMSettings),
    ("feedback.contrast", ContrastSettings),
    ("rl.reward.NAME", RewardPart), ("rl.cost", CostSettings), ("rl.gold", GoldSettings), ("rl.stop", StopSettings),
    ("evaluation", EvaluationSettings),
    ("evaluation.measures.NAME", MeasureSettings), ("lora, inside training, sft, reward_model and rl", LoRASettings),
]  # fmt: skip
KINDS = dict(SECTIONS) | {"rl": PPOSettings, "endpoints.NAME": EndpointSettings}


def default_of(field):
    """The default as the table shows it."""
    if field.is_required():
        return "required"
    if isinstance(field.default, dict):
        return f"`{{{', '.join(field.default)}}}`"
    return f"`{field.default}`"


def shown(kind):
    """The fields of a settings class that are values and not sections of their own."""
    sections = {title for title, _ in SECTIONS} if kind is Recipe else set()
    for name, field in kind.model_fields.items():
        if not isinstance(field.default, Settings) and name not in sections:
            yield name, field


def words_of(field):
    """A field's docstring on one line of a table."""
    return " ".join((field.description or "").split()).replace("|", "\\|")


def field_of(key):
    """The field behind a dotted key of the first level."""
    section, _, name = key.rpartition(".")
    kind = Recipe if not section else DPOSettings if name == "beta" else KINDS[section]
    return kind.model_fields[name]


def recipe_of(example):
    """A recipe with the example in it; a ValidationError where it is not valid."""
    base = {"model": "m", "constitution": "c", "prompts": {"files": ["f"]}, "evaluation": {"scorer": "refusal-words"}}
    values = base | yaml.safe_load(example)
    if "pairs" in example.partition("feedback")[2] and "labelled" not in example:
        values |= {"revise": None, "sft": None}
    if "endpoints" in values:
        values["feedback"] = {"judge": "endpoint:judge"}
    if "endpoint:judge" in example:
        values["endpoints"] = {"judge": {"url": "http://localhost:8000/v1", "model": "m"}}
    if "quantization" in values:
        values["training"] = {"lora": {"rank": 4}}
    if "best_of" in example or "measures" in example:
        values["evaluation"] = {"scorer": "refusal-words"} | values["evaluation"]
    return Recipe.model_validate(values)


def page():
    """The whole page."""
    first = "".join(f"| `{key}` | `{example}` | {words_of(field_of(key))} |\n" for key, example in FIRST_LEVEL)
    parts = [HEAD + first + SECOND]
    for title, kind in SECTIONS:
        rows = [f"| `{name}` | {default_of(field)} | {words_of(field)} |" for name, field in shown(kind)]
        parts.append("\n".join([f"### {title}", "", "| key | default | meaning |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
