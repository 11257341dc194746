"""Write recipes.md from the settings classes: python docs/recipes.py."""

from pathlib import Path

from charter.recipe import settings as config

HEAD = """# Recipes

A recipe is a YAML file; `charter run RECIPE --set rl.steps=20` changes a setting. An unknown key is an error that names the
nearest key. `null` for `revise`, `sft`, `feedback`, `rl` or `evaluation` leaves the stage out. File names are relative to the
recipe's folder; `package:NAME/PATH` is a file inside an installed package. `python docs/recipes.py` writes this page from the
settings classes, and a test checks it.
"""

SECTIONS = [
    ("The top", config.Recipe), ("endpoints.NAME", config.EndpointSettings),
    ("prompts", config.PromptSettings), ("gates", config.GateSettings),
    ("revise", config.ReviseSettings), ("sft", config.SFTSettings), ("feedback", config.FeedbackSettings),
    ("reward_model", config.RewardModelSettings), ("rl, method: ppo", config.PPOSettings),
    ("rl, method: rloo", config.RLOOSettings), ("rl, method: grpo", config.GRPOSettings),
    ("rl, method: dpo", config.DPOSettings), ("rl, method: online_dpo", config.OnlineDPOSettings),
    ("rl.vllm", config.VLLMSettings), ("feedback.contrast", config.ContrastSettings),
    ("rl.reward.NAME", config.RewardPart), ("rl.cost", config.CostSettings),
    ("evaluation", config.EvaluationSettings), ("evaluation.measures.NAME", config.MeasureSettings),
    ("lora, inside sft, reward_model and rl", config.LoRASettings),
]  # fmt: skip


def default_of(field):
    """The default as the table shows it."""
    if field.is_required():
        return "required"
    if isinstance(field.default, dict):
        return f"`{{{', '.join(field.default)}}}`"
    return f"`{field.default}`"


def shown(kind):
    """The fields of a settings class that are values and not sections of their own."""
    for name, field in kind.model_fields.items():
        section = isinstance(field.default, config.Settings) or (kind is config.Recipe and name in ("prompts", "evaluation"))
        if not section:
            yield name, field


def page():
    """The whole page."""
    parts = [HEAD]
    for title, kind in SECTIONS:
        words = {name: " ".join(field.description.split()).replace("|", "\\|") for name, field in shown(kind)}
        rows = [f"| `{name}` | {default_of(field)} | {words[name]} |" for name, field in shown(kind)]
        parts.append("\n".join([f"## {title}", "", "| key | default | meaning |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
