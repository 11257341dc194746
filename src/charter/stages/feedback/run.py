"""Feedback: responses compared by a judge or by people, or pairs that need no comparing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from charter.constitution.constitution import BY_ROW, Constitution, hashes_of_principles
from charter.constitution.revise import asked_for
from charter.errors import GateError, InputError
from charter.judging.gate import better_judge
from charter.judging.judge import (
    Comparison,
    LanguageModelJudge,
    comparisons_of,
    earlier_judgment,
    judgment,
    labelled_comparisons,
    pairs_of,
    prompt_file,
)
from charter.judging.people import (
    FOLDER,
    TO_LABEL,
    VOTES,
    PeoplesVotes,
    agreement_with_people,
    sample_for_people,
    votes_hash,
    with_people,
)
from charter.judging.priorities import Case, cases_of, earlier_ruling, measure_rule, rule, ruled
from charter.judging.protocols import judges_of
from charter.models.chat_template import TemplateRefusal, encode_prompt
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.reading.pairs import read_pairs
from charter.records import Judgment, Message, Pair, Prompt, Response, Revision, content_id
from charter.run.files import read_jsonl, read_lines, write_jsonl
from charter.run.hashes import derive_seed, file_hash
from charter.run.run import Run, Stage
from charter.run.team import team
from charter.stages.answers import answer
from charter.stages.feedback.settings import ContrastSettings, FeedbackSettings
from charter.stages.gates import Gates, percent
from charter.stages.models import Model, Models
from charter.stages.prompts.run import prompts_to_compare
from charter.stages.revise.left import usable_revisions
from charter.statistics import distinct_pairs, mean_interval
from charter.votes.exports import export_preferences
from charter.votes.judgments import follow

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe

C = TypeVar("C", Comparison, Case)
NO_LABELLED_PAIRS = "no labelled pairs to test the judge on; set feedback.labelled_pairs"


def gather_feedback(
    run: Run, recipe: Recipe, settings: FeedbackSettings, models: Models, gates: Gates, constitution: Constitution,
    scorer_identity: str, prompts: Stage | None, revisions: Stage | None, start: Model, name: str = "feedback",
) -> Stage:  # fmt: skip
    """K responses per prompt, compared by the judge under drawn principles, by people, or by both: judgments, then pairs.

    Gates: before any label the judge must beat chance on pairs whose answer is known; people must have answered.
    """
    if settings.pairs:
        return take_pairs(run, recipe, settings)
    assert prompts is not None
    if settings.revisions:
        assert revisions is not None
        return pair_revisions(run, settings, prompts, revisions)
    if settings.contrast is not None:
        return pair_by_contrast(run, recipe, settings, settings.contrast, models, prompts, start, name)
    known = read_pairs(Path(settings.labelled_pairs)) if settings.labelled_pairs else None
    labelled = known.pairs[: settings.gate_pairs] if known is not None else []
    ranks = ("priority", "authority") if settings.priorities else ()
    stances = stances_of(settings)
    inputs = {
        "prompts": prompts.output_hash,
        "sft": start.hash,
        "judge": models.hash_of(settings.judge, start) if settings.asks_judge else "",
        "generator": models.hash_of(settings.generator, start),
        **hashes_of_principles(constitution, "preference", "question", "good_answer", *ranks),
        "labelled": content_id([pair.model_dump(mode="json") for pair in labelled]),
        "gate": content_id(recipe.gates.min_judge_accuracy),
        "batch": str(recipe.batch_size),
        "precision": recipe.arithmetic,
        "stances": content_id(stances),
        **({VOTES: votes_hash(run.folder)} if settings.raters != "judge" else {}),
    }  # fmt: skip
    with run.stage(name, settings, inputs, [__name__], (*BY_ROW, VOTES)) as stage:
        scores_report = settings.asks_judge and scorer_identity == models.identity_of(settings.judge, start)
        gates.check_scorer(stage, scores_report, "the judge that gives the reward would also score the report")
        if stage.done:
            gates.recall(stage)
            return stage
        judge, card = None, None
        if settings.asks_judge:
            sampler = models.answering(settings.judge, start)
            judge, card = gate_judge(
                recipe, settings, gates, stage, judges_of(settings.protocol, sampler, constitution), constitution, labelled
            )
        chosen = prompts_to_compare(prompts, settings.prompts)
        k = settings.responses_per_prompt
        generator = models.answering(settings.generator, start)
        check_system_turn(generator, stances)
        responses = answer(
            stage, "responses.jsonl", generator, chosen, k=k, batch_size=recipe.batch_size, seed=recipe.seed, settings=settings,
            stances=stances,
        )  # fmt: skip
        groups = [responses[i : i + k] for i in range(0, len(responses), k)]
        pairs: list[Pair] = []
        result: dict[str, Any] = {}
        judgments: list[Judgment] = []
        if judge is not None:
            judgments = judge_groups(recipe, settings, stage, judge, card, constitution, chosen, groups)
            by_id = {p.id: p for p in chosen}
            pairs = pairs_of(judgments, by_id, {r.id: r for r in responses}, calibration=settings.calibration)
            verdicts = sum(j.has_verdict for j in judgments)
            result = {"comparisons": len(judgments), "verdicts": verdicts, "ties": verdicts - len(pairs), "judge": card}
            if settings.priorities:
                result["decided"] = dict(Counter(j.principle for j in judgments if j.principle is not None and j.has_verdict))
        if settings.raters != "judge":
            votes = ask_people(recipe, settings, gates, stage, groups)
            result |= {"votes": len(votes.judgments), "people": len({vote.rater_id for vote in votes.judgments})}
            if card is not None:
                card["people"] = agreement_with_people(judgments, votes.judgments)
            pairs, left_out = team().on_main(lambda: with_people(pairs, votes))
            alike = sum(len({response.text for response in group}) == 1 for group in groups) if judge is None else 0
            result["excluded"] = left_out | ({"prompt whose responses are all the same": alike} if alike else {})
        if len({pair.group_id for pair in pairs}) < 4:
            raise GateError(f"a response was preferred in only {len(pairs)} comparisons: too few to train on")
        excluded = {f"labelled pair: {reason}": n for reason, n in known.excluded.items()} if known is not None else {}
        result |= {"candidates": spread(groups, settings), "pairs": len(pairs), "gates": gates.of(stage),
                   "excluded": result.get("excluded", {}) | excluded}  # fmt: skip
        finish_with_pairs(stage, pairs, result)
    return stage


def stances_of(settings: FeedbackSettings) -> list[str]:
    """The system turns of diverse candidates; none where candidates differ by chance. InputError for fewer than responses."""
    if settings.sampling == "plain":
        return []
    file = Path(settings.stances) if settings.stances else None
    text = prompt_file("stances") if file is None else "\n".join(line for _, line in read_lines(file))
    stances = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(stances) < settings.responses_per_prompt:
        words = f"{len(stances)} stances, and feedback.responses_per_prompt is {settings.responses_per_prompt}; write more lines"
        raise InputError(words, file=file, field=None if file else "feedback.stances")
    return stances


def check_system_turn(sampler: Sampler, stances: Sequence[str]) -> None:
    """InputError where there are stances and the chat template of a local model takes no system turn."""
    if not stances or not isinstance(sampler, LocalSampler):
        return
    probe = [Message(role="system", content=stances[0]), Message(role="user", content="Hi.")]
    try:
        encode_prompt(sampler.trunk.tokenizer, probe)
    except TemplateRefusal as refusal:
        words = f"feedback.sampling: diverse needs a system turn, and {refusal.words}; name another feedback.generator"
        raise InputError(words, file=sampler.trunk.path) from None


def spread(groups: Sequence[Sequence[Response]], settings: FeedbackSettings) -> dict[str, Any]:
    """How much the responses to one prompt differ: distinct-2 of each K texts, the mean over the prompts with its interval."""
    measured = mean_interval([distinct_pairs([response.text for response in group]) for group in groups])
    return {"sampling": settings.sampling, "k": settings.responses_per_prompt, "distinct_2": measured.value, "ci": measured.ci,
            "n": measured.n, "n_unmeasured": measured.n_unscored}  # fmt: skip


def finish_with_pairs(stage: Stage, pairs: list[Pair], result: dict[str, Any]) -> None:
    """Write pairs.jsonl of the stage and the run's preferences.csv, then close the stage."""
    write_jsonl(stage.path("pairs.jsonl"), pairs)
    export_preferences(stage.export(f"{stage.name.replace('feedback', 'preferences')}.csv"), pairs)
    stage.finish(result)


def gate_judge(
    recipe: Recipe, settings: FeedbackSettings, gates: Gates, stage: Stage, judges: Mapping[str, LanguageModelJudge],
    constitution: Constitution, labelled: Sequence[Pair],
) -> tuple[LanguageModelJudge, dict[str, Any] | None]:  # fmt: skip
    """The better of the judges, and its card on pairs whose answer is known, None if there are none; the gates on what it
    says, and with priorities on what the rule says. InputError for priorities without ranks."""
    if settings.priorities and not constitution.ranked:
        words = "is true, and no principle goes before another; give principles a priority or an authority"
        raise InputError(words, file=recipe.constitution, field="feedback.priorities")
    judge, card = better_judge(judges, labelled, constitution, seed=recipe.seed, batch_size=recipe.batch_size)
    if card is None:
        words = NO_LABELLED_PAIRS
        if labelled:
            words = f"no principle with a preference text applies to any of the {len(labelled)} labelled pairs; tag their prompts"
        gates.check(stage, "judge beats chance", False, words)
        return judge, None
    floor = recipe.gates.min_judge_accuracy
    good = card["ci"] is not None and card["ci"][0] > floor
    interval = f"{percent(card['ci'][0])} to {percent(card['ci'][1])}" if card["ci"] else "not estimable"
    gates.check(
        stage, "judge beats chance", good,
        f"the judge is right on {percent(card['accuracy'])} of {card['n']} labelled pairs (95% interval {interval})"
        + protocol_words(card) + ("" if good else f", not clearly above {percent(floor)}: these labels are noise"),
    )  # fmt: skip
    if settings.priorities:
        ruling = card["priorities"] = measure_rule(
            judge, labelled_comparisons(labelled, constitution, recipe.seed), constitution, noise_of(settings, card),
            seed=recipe.seed, batch_size=recipe.batch_size,
        )  # fmt: skip
        good = ruling["ci"] is not None and ruling["ci"][0] > floor
        gates.check(
            stage, "judge by priority beats chance", good,
            f"the first principle whose margin exceeds {ruling['noise_nats']:.2f} nats is right on "
            f"{percent(ruling['accuracy'])} of {ruling['n']} labelled pairs; {ruling['undecided']} others stay undecided"
            + ("" if good else f", not clearly above {percent(floor)}"),
        )  # fmt: skip
    return judge, card


def noise_of(settings: FeedbackSettings, card: Mapping[str, Any] | None) -> float:
    """The margin that a principle must exceed to decide, nats."""
    return max(settings.abstain_below, (card and card["fitted_temperature"]) or 0.0)


def protocol_words(card: Mapping[str, Any]) -> str:
    """The protocol of a judge, beside the others that were measured on the same pairs."""
    others = [f"{row['protocol']} {percent(row['accuracy'])}" for row in card.get("protocols", ()) if not row["chosen"]]
    return f", by protocol {card['protocol']}" + (f" (by {', '.join(others)})" if others else "")


def drawn_comparisons(
    recipe: Recipe, constitution: Constitution, prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]]
) -> list[Comparison]:
    """Every pair of the responses to each prompt under a principle drawn for it. InputError if no principle applies."""
    return applying(comparisons_of(prompts, groups, constitution, recipe.seed), recipe)


def ranked_cases(
    recipe: Recipe, constitution: Constitution, prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]]
) -> list[Case]:
    """Every pair of the responses to each prompt under all principles that apply, by rank. InputError if none applies."""
    return applying(cases_of(prompts, groups, constitution, recipe.seed), recipe)


def applying(compared: list[C], recipe: Recipe) -> list[C]:
    if not compared:
        words = "no principle with a preference text applies to these prompts"
        raise InputError(words, file=recipe.constitution or "constitution")
    return compared


def judge_groups(
    recipe: Recipe, settings: FeedbackSettings, stage: Stage, judge: LanguageModelJudge, card: Mapping[str, Any] | None,
    constitution: Constitution, prompts: Sequence[Prompt], groups: Sequence[Sequence[Response]],
) -> list[Judgment]:  # fmt: skip
    """The judge's chained judgments of every pair of the responses to each prompt, in judgments.jsonl of the stage: under a drawn
    principle, or with priorities under the first that decides."""
    stored = stage.rows("judgments.jsonl", Judgment)
    earlier = stage.earlier("judgments.jsonl", Judgment)
    by_all, label, quiet = isinstance(judge.sampler, LocalSampler), "feedback: judgments", stage.run.quiet
    if settings.priorities:
        noise = noise_of(settings, card)

        def decide(batch: Sequence[Case]) -> Iterator[Judgment]:
            for case, ruling in zip(batch, rule(judge, batch, noise), strict=True):
                yield ruled(case, ruling, noise, rater_id=judge.name, template=judge.template)

        return stored.work(
            ranked_cases(recipe, constitution, prompts, groups), recipe.batch_size, decide, follow=follow,
            known=earlier_ruling(earlier, noise, judge.template), by_all=by_all, label=label, quiet=quiet,
        )  # fmt: skip
    comparisons = drawn_comparisons(recipe, constitution, prompts, groups)
    return stored.work(
        comparisons,
        recipe.batch_size,
        lambda batch: (
            judgment(comparison, preference, rater_id=judge.name, abstain_below=settings.abstain_below, template=judge.template)
            for comparison, preference in zip(batch, judge(batch), strict=True)
        ),
        follow=follow,
        known=earlier_judgment(earlier, judge.template),
        by_all=by_all,
        label=label,
        quiet=quiet,
    )


def ask_people(
    recipe: Recipe, settings: FeedbackSettings, gates: Gates, stage: Stage, groups: Sequence[Sequence[Response]]
) -> PeoplesVotes:
    """People's votes on the responses that they are asked about. GateError with the page's command while some are open."""
    folder = stage.run.folder
    share = settings.human_share if settings.raters == "mixed" else 1.0
    chosen = sample_for_people(groups, share, recipe.seed)
    write_jsonl(stage.path(TO_LABEL), (response for group in chosen for response in group))
    votes = team().on_main(lambda: PeoplesVotes(folder / FOLDER, chosen))
    words = f"people have compared the responses to all {len(chosen)} prompts"
    if votes.open:
        words = f"{votes.open} of {len(chosen)} prompts still need votes; run `charter label {folder}`, then repeat this command"
    gates.check(stage, "people have answered", not votes.open, words)
    return votes


def take_pairs(run: Run, recipe: Recipe, settings: FeedbackSettings) -> Stage:
    """Pairs from the recipe's files, as they are or a draw of whole groups."""
    inputs = {"pairs": content_id([file_hash(Path(file)) for file in settings.pairs]), "seed": str(recipe.seed)}
    with run.stage("feedback", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        files = [read_pairs(Path(file)) for file in settings.pairs]
        pairs = [pair for file in files for pair in file.pairs]
        most = settings.max_pairs
        if most is not None and len(pairs) > most:
            groups: dict[str, list[Pair]] = {}
            for pair in pairs:
                groups.setdefault(pair.group_id, []).append(pair)
            order = sorted(groups, key=lambda group: derive_seed(recipe.seed, "pairs", group))
            ends = accumulate(len(groups[group]) for group in order)
            pairs = [pair for group, end in zip(order, ends, strict=True) if end <= most for pair in groups[group]]
        write_jsonl(stage.path("pairs.jsonl"), pairs)
        excluded = sum((Counter(file.excluded) for file in files), Counter[str]())
        n_rows = sum(file.n_rows for file in files)
        stage.finish({"read": n_rows, "excluded": dict(excluded), "pairs": len(pairs), "gates": []})
    return stage


def pair_of(prompt: Prompt, chosen: str, rejected: str) -> list[Pair]:
    """The pair of two responses; none where they are equal."""
    return [Pair(prompt=prompt, chosen=chosen, rejected=rejected, group_id=prompt.id)] if chosen != rejected else []


def pair_revisions(run: Run, settings: FeedbackSettings, prompts: Stage, revisions: Stage) -> Stage:
    """The last usable revision of each prompt over the answer that it began from; nobody compares."""
    inputs = {"prompts": prompts.output_hash, "revise": revisions.output_hash}
    with run.stage("feedback", settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        by_id = {p.id: p for p in read_jsonl(prompts.path("prompts.jsonl"), Prompt)}
        first = {row.prompt_id: row.original.text for row in read_jsonl(revisions.path("revisions.jsonl"), Revision)
                 if row.round == 1}  # fmt: skip
        last = {row.prompt_id: row.revision.text for row in sorted(usable_revisions(revisions), key=lambda row: row.round)}
        pairs = [pair for key, text in last.items() for pair in pair_of(by_id[key], text, first[key])]
        if len(pairs) < 4:
            raise GateError(f"only {len(pairs)} revisions differ from their answers: too few to train on")
        finish_with_pairs(stage, pairs, {"pairs": len(pairs), "gates": []})
    return stage


def pair_by_contrast(
    run: Run, recipe: Recipe, settings: FeedbackSettings, contrast: ContrastSettings, models: Models, prompts: Stage,
    start: Model, name: str,
) -> Stage:  # fmt: skip
    """Pairs without a judge (Yang et al. 2023, RLCD): each prompt is answered twice, once asked for a good answer and once for a
    bad one; the answers are stored behind the prompt as it was. Identical answers make no pair and count as ties."""
    inputs = {
        "prompts": prompts.output_hash, "sft": start.hash, "batch": str(recipe.batch_size),
        "precision": recipe.arithmetic, "generator": models.hash_of(settings.generator, start),
    }  # fmt: skip
    with run.stage(name, settings, inputs, [__name__]) as stage:
        if stage.done:
            return stage
        chosen = prompts_to_compare(prompts, settings.prompts)
        sides = [
            answer(
                stage, f"responses.{side}.jsonl", models.answering(settings.generator, start),
                [asked_for(p, words) for p in chosen], batch_size=recipe.batch_size, seed=recipe.seed,
                settings=settings,
            )
            for side, words in (("positive", contrast.positive), ("negative", contrast.negative))
        ]  # fmt: skip
        texts = [[response.text for response in responses] for responses in sides]
        pairs = [pair for prompt, better, worse in zip(chosen, *texts, strict=True) for pair in pair_of(prompt, better, worse)]
        if len(pairs) < 4:
            raise GateError(f"only {len(pairs)} prompts got two different answers: too few to train on")
        finish_with_pairs(
            stage, pairs, {"comparisons": len(chosen), "verdicts": len(pairs), "pairs": len(pairs), "judge": None,
                           "ties": len(chosen) - len(pairs), "gates": []}
        )  # fmt: skip
    return stage
