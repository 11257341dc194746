"""A commented recipe for a user's own case, from three answers: the model, what there is to learn from, and the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from charter.errors import InputError
from charter.recipe.files import shipped
from charter.recipe.recipe import Recipe
from charter.run.files import write_text


@dataclass(frozen=True)
class Goal:
    """One kind of run. ``asks``: what the file is; ``sections``: YAML below the head, with {file}."""

    words: str
    asks: str
    sections: str
    principles: bool = False


PROMPTS = """\
prompts:
  # Prompts to which an answer may do harm, and prompts to be answered: red_team and benign. Tags in the file do as well
  # (`"tags": ["red_team"]`). One file for each: red_team: [FILE], benign: [FILE].
  files: [{file}]
  # train: 1000    # at most so many of each kind
  # test: 300      # held out; the report is about them
"""
JUDGED = """\
evaluation:
  # Who says what is harmful, refused and helpful. The rule below knows words of refusal and nothing else; a model knows
  # more: judge:FOLDER, or judge:endpoint:NAME with a server described under endpoints.
  scorer: refusal-words
  max_new_tokens: 128
"""
LORA = """\
  lora: {{rank: 16, alpha: 32}}    # adapters; leave it out to train all weights
"""
PPO = (
    """\
rl:
  method: ppo              # or rloo, grpo: no value model, several samples a prompt
"""
    + LORA
    + """\
  steps: 100
  prompts_per_step: 32
  samples_per_prompt: 1
  max_new_tokens: 128
  learning_rate: 3.0e-5
  kl_coef: 0.05            # higher: closer to the model that it starts from
"""
)
GOALS: dict[str, Goal] = {
    "constitution": Goal(
        "a written constitution: the model revises its own answers, and a judge compares them",
        "the prompts",
        PROMPTS
        + """
revise:
  rounds: 2                # critique and revision, so many times
  prompts: 400
  max_new_tokens: 128

sft:
"""
        + LORA
        + """\
  epochs: 2
  learning_rate: 1.0e-4
  helpful_fraction: 0.4    # the model's own helpful answers among the data; 0 risks a model that only refuses
  max_tokens: 1024

feedback:
  judge: base              # or the folder of another model, or endpoint:NAME
  prompts: 800
  responses_per_prompt: 2
  max_new_tokens: 128
  # Pairs with known answers (columns prompt, chosen, rejected). The judge must beat chance on them, so a run needs this file.
  # labelled_pairs: known-pairs.jsonl

reward_model:
"""
        + LORA
        + """\
  epochs: 1
  learning_rate: 1.0e-4
  max_tokens: 1024

"""
        + PPO
        + "\n"
        + JUDGED,
        principles=True,
    ),
    "people": Goal(
        "people's votes: responses are sampled, ranked on a local page, and learned from",
        "the prompts",
        PROMPTS
        + """
revise: null
sft: null

feedback:
  # The run stops here until the answers are compared: `charter label` on the run folder opens the page.
  raters: human            # or mixed: a judge compares, people check a share
  prompts: 300
  responses_per_prompt: 4
  max_new_tokens: 128

reward_model:
"""
        + LORA
        + """\
  epochs: 2
  learning_rate: 1.0e-4
  max_tokens: 1024

"""
        + PPO
        + "\n"
        + JUDGED,
    ),
    "pairs": Goal(
        "preference pairs that you have: DPO on them",
        "the pairs (columns prompt, chosen, rejected; hh-rlhf as it is)",
        """\
revise: null
sft: null                  # or examples to learn first: sft: {{data: [FILE]}}

feedback:
  pairs: [{file}]

rl:
  method: dpo
"""
        + LORA
        + """\
  beta: 0.1                # higher: closer to the model that it starts from
  epochs: 1
  learning_rate: 5.0e-6
  max_tokens: 1024

# For a report give prompts to hold out, and say who scores. The scorer counts harm in the answers to the prompts under red_team
# and refusals in the answers to those under benign; a report on other prompts needs evaluation.measures.
# prompts: {{red_team: [harmful.jsonl], benign: [harmless.jsonl], test_fraction: 0.9}}
# evaluation: {{scorer: refusal-words}}
""",
    ),
    "reward": Goal(
        "preference pairs that you have: a reward model, measured on held-out ones",
        "the pairs (columns prompt, chosen, rejected; hh-rlhf as it is)",
        """\
revise: null
sft: null
rl: null                   # or PPO against the reward model: rl: {{method: ppo}}, with prompts

feedback:
  pairs: [{file}]

reward_model:
"""
        + LORA
        + """\
  epochs: 1
  learning_rate: 1.0e-4
  pairs_per_step: 32
  max_tokens: 1024
  test_fraction: 0.1       # held out, to measure it
""",
    ),
    "classifier": Goal(
        "a classifier that says what is good: PPO against its logit",
        "the prompts",
        """\
prompts:
  files: [{file}]
  # train: 1000
  # test: 300

revise: null
sft: null
feedback: null

"""
        + PPO
        + """\
  reward:
    # FOLDER and LABEL of a sequence classifier, read on the response alone.
    classifier: {{source: "classifier:FOLDER:LABEL"}}

evaluation:
  measures:
    # Better another classifier than the one that gives the reward: nobody marks their own work.
    good: {{source: "classifier:OTHER_FOLDER:LABEL", better: higher}}
  max_new_tokens: 128
""",
    ),
}


def write_recipe(file: Path, *, model: str, goal: str, data: str, force: bool = False) -> list[Path]:
    """Write the recipe, and where it needs one a constitution to edit beside it; the files written. InputError for an unknown
    goal, or if the file exists."""
    if goal not in GOALS:
        raise InputError(f"no goal {goal!r}; the goals are {', '.join(GOALS)}", field="--goal")
    for name, value in (("--model", model), ("--file", data)):
        if not value.strip() or "\n" in value:
            raise InputError("is empty or more than one line", field=name)
    chosen = GOALS[goal]
    constitution = file.with_name(f"{file.stem}-constitution.yaml") if chosen.principles else None
    for path in (file, constitution):
        if path is not None and path.exists() and not force:
            raise InputError("already exists; choose another name, or --force to replace it", file=path)
    text = recipe_text(file.stem, model, chosen, data, constitution)
    Recipe.model_validate(yaml.safe_load(text), context={"folder": file.resolve().parent})
    if constitution is not None:
        write_text(constitution, (shipped("constitutions") / "general.yaml").read_text(encoding="utf-8"))
    write_text(file, text)
    return [path for path in (file, constitution) if path is not None]


def recipe_text(title: str, model: str, goal: Goal, data: str, constitution: Path | None) -> str:
    """The recipe as YAML."""
    own = f"constitution: {quoted(constitution.name)}    # edit it: these are the principles\n" if constitution else ""
    return (
        f"# {goal.words[0].upper()}{goal.words[1:]}.\n"
        f"# What it will take: charter plan {title}.yaml. Then: charter run {title}.yaml. Every key: docs/recipes.md.\n"
        f"title: {quoted(title)}\nmodel: {quoted(model)}\n{own}seed: 0\n\n" + goal.sections.format_map({"file": quoted(data)})
    )


def quoted(text: str) -> str:
    """A YAML scalar of any text."""
    return yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True).strip()


def complete(model: str | None, goal: str | None, data: str | None, *, can_ask: bool) -> tuple[str, str, str]:
    """Model, goal and file: those given by flags, the others asked for. InputError if nobody can be asked."""
    import typer

    missing = [name for name, value in (("--model", model), ("--goal", goal), ("--file", data)) if value is None]
    if missing and not can_ask:
        raise InputError(
            f"give {' and '.join(missing)}: without a terminal nothing can be asked; the goals are {', '.join(GOALS)}"
        )
    if model is None:
        model = typer.prompt("Which model? A folder, or a name on the hub")
    if goal is None:
        for name, one in GOALS.items():
            typer.echo(f"  {name:14}{one.words}")
        goal = typer.prompt("What is there to learn from?", default="constitution")
    if goal not in GOALS:
        raise InputError(f"no goal {goal!r}; the goals are {', '.join(GOALS)}", field="--goal")
    if data is None:
        data = typer.prompt(f"Which file holds {GOALS[goal].asks}?")
    return model, goal, data
