"""Control arms: the last training again, from the same model, with one thing changed that takes the constitution out of it.

| arm | pairs (DPO, or a reward model among the parts of the reward) | any other reward |
|---|---|---|
| `flipped` | chosen and rejected exchanged | its weights with the opposite sign, a cost among them |
| `random` | a coin says which is chosen; in RL its own reward | random numbers |
| `length` | the longer one is chosen; in RL its own reward | 6.4 for `max_new_tokens`, in proportion |
| `shuffled` | judged anew under a principle of another topic | refused: nothing was judged |

What a control gains, the training gives and not the constitution. Prompts, responses, settings and the fine-tuned model are those
of the run, so only what differs is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from charter.constitution.constitution import Constitution, draw, hashes_of_principles
from charter.errors import GateError
from charter.judging.judge import Comparison, judgment, pairs_of
from charter.judging.protocols import PROTOCOLS
from charter.models.marks import model_folder
from charter.models.sampling.sampler import LocalSampler
from charter.records import Judgment, Pair, Prompt, Response
from charter.run.files import read_jsonl, write_jsonl
from charter.run.hashes import derive_seed
from charter.run.run import Run, Stage
from charter.stages.gates import Gates
from charter.stages.models import Model, Models
from charter.stages.prompts.run import prompts_to_compare
from charter.stages.reward_model.run import half_of, train_reward
from charter.stages.rl.run import train_policy
from charter.stages.rl.settings import AnyRLSettings, PairSettings, RewardPart, RolloutSettings, StopSettings
from charter.votes.judgments import follow

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe

LONGEST = 6.4
"""What a response of ``max_new_tokens`` scores in the arm `length`, reward units: 0.1 a token at the default limit of 64, and as
much for the longest response at any other."""


def control_settings(recipe: Recipe, control: str) -> AnyRLSettings:
    """The settings of the last training, with the reward of the control."""
    assert recipe.rl is not None
    settings = recipe.rl.model_copy(update={"gold": None, "stop": None, "keep": "last"})
    if not isinstance(settings, RolloutSettings):
        return settings
    if recipe.rl.stop is not None and recipe.rl.stop.kl is not None:  # the budget is not the constitution's
        settings = settings.model_copy(update={"stop": StopSettings(kl=recipe.rl.stop.kl)})
    if control == "random":
        return settings.model_copy(update={"reward": {"random": RewardPart()}, "cost": None})
    if control == "length":
        return settings.model_copy(
            update={"reward": {"length": RewardPart(weight=LONGEST / settings.max_new_tokens)}, "cost": None}
        )
    if control == "flipped" and not recipe.trains_reward_model:
        weights = {name: -part.weight for name, part in settings.reward.items()}
        weights |= {settings.cost.part: settings.cost.initial} if settings.cost is not None else {}
        parts = {name: part.model_copy(update={"weight": weights[name]}) for name, part in settings.reward.items()}
        return settings.model_copy(update={"reward": parts, "cost": None})
    return settings


def learns_from_pairs(recipe: Recipe, control: str) -> bool:
    """Whether a control needs pairs of its own."""
    return isinstance(recipe.rl, PairSettings) or (control in ("flipped", "shuffled") and recipe.trains_reward_model)


def train_control(
    control: str, run: Run, recipe: Recipe, models: Models, gates: Gates, constitution: Constitution, prompts: Stage | None,
    start: Model, feedback: Stage | None,
) -> Model:  # fmt: skip
    """The model of one control arm."""
    settings = control_settings(recipe, control)
    reward = None
    if learns_from_pairs(recipe, control):
        assert feedback is not None
        feedback = control_pairs(control, run, recipe, models, constitution, prompts, start, feedback)
        if not isinstance(settings, PairSettings):
            models.release()
            reward = train_reward(run, recipe, models, start, feedback, f"reward_model-{control}")
            models.release()
    # The scorer of the report stands beside the run's own reward, whose gate has met it already.
    policy = train_policy(run, recipe, settings, models, gates, "", prompts, start, feedback, reward, f"rl-{control}")
    return Model(control, str(policy.path(model_folder(policy.name))), policy.output_hash)


def control_pairs(
    control: str, run: Run, recipe: Recipe, models: Models, constitution: Constitution, prompts: Stage | None, start: Model,
    feedback: Stage,
) -> Stage:  # fmt: skip
    """The pairs of a control in a stage of its own, made of those of the feedback."""
    if control == "shuffled":
        assert prompts is not None
        return judge_by_other_topics(run, recipe, models, constitution, prompts, start, feedback)
    inputs = {"feedback": feedback.output_hash}
    half = learned_half(recipe)
    with run.stage(f"feedback-{control}", {"seed": recipe.seed, "half": half}, inputs, [__name__]) as stage:
        if not stage.done:
            pairs = half_of(list(read_jsonl(feedback.path("pairs.jsonl"), Pair)), half, recipe.seed)
            changed = [made for pair in pairs if (made := CHANGES[control](pair, recipe.seed)) is not None]
            write_jsonl(stage.path("pairs.jsonl"), changed)
            stage.finish({"pairs": len(changed), "excluded": {"equally long": len(pairs) - len(changed)}})
    return stage


def learned_half(recipe: Recipe) -> int | None:
    """The half of the feedback that the last training learns from, which a control learns from too; None for all of it."""
    return 0 if recipe.halves_the_feedback else None


def flipped(pair: Pair, _: int) -> Pair:
    return pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen})


def by_a_coin(pair: Pair, seed: int) -> Pair:
    heads = derive_seed(seed, "random pairs", pair.group_id, *sorted((pair.chosen, pair.rejected))) % 2
    first, second = sorted((pair.chosen, pair.rejected))[:: 1 if heads else -1]
    return pair.model_copy(update={"chosen": first, "rejected": second})


def by_length(pair: Pair, _: int) -> Pair | None:
    """The longer one chosen, in characters; None if both are equally long."""
    if len(pair.chosen) == len(pair.rejected):
        return None
    return pair if len(pair.chosen) > len(pair.rejected) else flipped(pair, 0)


CHANGES: dict[str, Callable[[Pair, int], Pair | None]] = {"flipped": flipped, "random": by_a_coin, "length": by_length}


def judge_by_other_topics(
    run: Run, recipe: Recipe, models: Models, constitution: Constitution, prompts: Stage, start: Model, feedback: Stage
) -> Stage:
    """The comparisons of the feedback, each judged again under a principle of a topic that is not the prompt's. The stage names
    the comparisons that it left out."""
    settings = recipe.feedback
    assert settings is not None
    inputs = {
        "feedback": feedback.output_hash, "judge": models.hash_of(settings.judge, start), "precision": recipe.arithmetic,
        **hashes_of_principles(constitution, "preference", "question", "good_answer"),
    }  # fmt: skip
    half = learned_half(recipe)
    made_of = {"seed": recipe.seed, "half": half}
    with run.stage("feedback-shuffled", {**made_of, "batch": recipe.batch_size}, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        responses = list(read_jsonl(feedback.path("responses.jsonl"), Response))
        chosen, k = prompts_to_compare(prompts, settings.prompts), settings.responses_per_prompt
        groups = [responses[i : i + k] for i in range(0, len(responses), k)]
        comparisons, n_without = other_comparisons(chosen, groups, constitution, recipe.seed)
        card: dict[str, Any] = feedback.result.get("judge") or {}
        fixed = "letters" if settings.protocol == "auto" else settings.protocol
        judge = PROTOCOLS[card.get("protocol") or fixed](models.answering(settings.judge, start))
        judgments = stage.rows("judgments.jsonl", Judgment).work(
            comparisons, recipe.batch_size,
            lambda batch: (
                judgment(comparison, preference, rater_id=judge.name, abstain_below=settings.abstain_below,
                         template=judge.template)
                for comparison, preference in zip(batch, judge(batch), strict=True)
            ),
            follow=follow, by_all=isinstance(judge.sampler, LocalSampler), label="feedback-shuffled: judgments", quiet=run.quiet,
        )  # fmt: skip
        by_id = {prompt.id: prompt for prompt in chosen}
        pairs = pairs_of(judgments, by_id, {r.id: r for r in responses}, calibration=settings.calibration)
        verdicts, n_told = sum(j.has_verdict for j in judgments), len(pairs)
        pairs = half_of(pairs, half, recipe.seed)
        if len({pair.group_id for pair in pairs}) < 4:
            raise GateError(f"the control shuffled: only {len(pairs)} comparisons have a principle of another topic and a "
                            "verdict; leave shuffled out of controls")  # fmt: skip
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        stage.finish({"comparisons": len(judgments), "verdicts": verdicts, "ties": verdicts - n_told, "pairs": len(pairs),
                      "excluded": {"no principle of another topic": n_without, "the half that gold learned from":
                                   n_told - len(pairs)}})  # fmt: skip
    return stage


def other_comparisons(
    prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]], constitution: Constitution, seed: int
) -> tuple[list[Comparison], int]:
    """Every pair of the responses to each prompt under a topic that does not apply to it, and the number of pairs without one."""
    comparisons, without = [], 0
    for prompt, group in zip(prompts, groups, strict=True):
        applies = {prompt.principle, *(principle.id for principle in constitution.for_comparison(prompt))}
        others = [p for p in constitution.topics() if p.preference is not None and p.id not in applies]
        for (i, first), (j, second) in combinations(enumerate(group), 2):
            if others:
                comparisons.append(Comparison(prompt, first, second, draw(others, seed, "shuffled", prompt.id, i, j)))
            without += not others
    return comparisons, without
