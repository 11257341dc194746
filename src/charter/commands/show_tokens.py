"""The first rows of each stage as the model sees them: ids, pieces, which tokens carry loss, where the reward is.

Nothing is put together here for show. The rows come from the functions that the stages call, and the questions of the
sampling stages are those that reached the sampler. What an earlier stage of a run would have made (the fine-tuned model,
its responses), and what a server or another generator or critic would answer, is stood in for by the base model, with the
settings of the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charter.constitution.categorise import categorise
from charter.constitution.constitution import EMPTY, Constitution, load_constitution, load_few_shots
from charter.constitution.revise import answer_in_context, asked_for, respond, revise_batch
from charter.errors import InputError
from charter.judging.judge import LogProbJudge, comparisons_of, judgment, pairs_of
from charter.models.chat_template import encode_prompt, encode_response
from charter.models.generate import context_length
from charter.models.layout import left_pad
from charter.models.load import pick_device
from charter.models.packing import Tokens
from charter.models.sampler import Conversation, LocalSampler, Sample
from charter.models.trunk import Trunk, load_trunk
from charter.reading.demonstrations import read_demonstrations
from charter.reading.pairs import read_pairs
from charter.reading.prompts import KINDS
from charter.reading.spool import taken_prompts
from charter.recipe.files import check_files
from charter.recipe.recipe import Recipe
from charter.records import Message, Pair, Prompt, Response
from charter.run.hashes import derive_seed
from charter.stages.feedback.settings import ContrastSettings, FeedbackSettings
from charter.stages.prompts.run import check_red_team, prompts_of
from charter.stages.revise.settings import ReviseSettings
from charter.stages.rl.settings import AnyRLSettings, DPOSettings, RolloutSettings
from charter.training.reward_model import pair_tokens
from charter.training.rewards import last_token
from charter.training.rollouts import collect, prompt_batch
from charter.training.sft import sft_tokens

if TYPE_CHECKING:
    from rich.text import Text

ROWS = 2  # prompts per stage: enough to see padding, few enough to read

Row = dict[str, Any]


class Recorder(LocalSampler):
    """A sampler that remembers what it was asked: ``asked`` conversations, ``compared`` conversations with their options."""

    def __init__(self, trunk: Trunk, name: str) -> None:
        super().__init__(trunk, name)
        self.asked: list[Sequence[Conversation]] = []
        self.compared: list[tuple[Sequence[Conversation], Sequence[Sequence[str]]]] = []

    def generate(
        self, conversations: Sequence[Conversation], seeds: Sequence[Sequence[int]], **settings: Any
    ) -> list[list[Sample]]:
        self.asked.append([tuple(conversation) for conversation in conversations])
        return super().generate(conversations, seeds, **settings)

    def option_logprobs(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[list[float]]:
        self.compared.append((conversations, options))
        return super().option_logprobs(conversations, options)


# -- what each stage feeds -----------------------------------------------------------------------------------------------


def first_batches(recipe: Recipe) -> dict[str, Any]:
    """The first rows of revise, sft, feedback, reward_model and rl, in JSON values.

    ``stages``: each with ``stage``, ``about`` and ``rows``; a row holds, position by position, ``ids``, ``pieces`` (control
    characters spelled out), ``attention`` (1 on real tokens, 0 on padding), ``mask`` (1 on response tokens), ``template``
    (1 on special tokens and those of the chat template), and ``reward_position`` (index, or None where the stage has no
    reward). InputError where the model, a file, or a prompt of the kind that a stage needs is missing.
    """
    check_files(recipe)
    constitution = load_constitution(Path(recipe.constitution)) if recipe.constitution else EMPTY
    device = pick_device(recipe.device)
    trunk = load_trunk(recipe.model, device=device, seed=recipe.seed, **recipe.loading)
    by_kind = first_prompts(recipe, trunk)
    few = {kind: categorise(p[:ROWS], constitution, LocalSampler(trunk, "base")) for kind, p in by_kind.items()}
    prompts = next((found for found in few.values() if found), [])
    stages: list[dict[str, Any]] = []
    examples: list[tuple[Conversation, str]] = []
    pairs: list[Pair] = []
    if recipe.revise is not None:
        rows, examples = revise_rows(recipe, recipe.revise, trunk, constitution, few["red_team"])
        about = "Sampled from: an answer, then for each round a critique and a revision. No loss."
        if recipe.revise.context is not None:
            about = "Sampled from: an answer, then one with the context before it. No loss."
        stages.append(stage_of("revise", about, rows))
        examples += helpful_answers(recipe, recipe.revise, trunk, few["benign"])
    if recipe.sft is not None:
        data = (one for file in recipe.sft.data for one in read_demonstrations(Path(file)))
        examples += [(prompt.messages, text) for prompt, text in islice(data, ROWS)]
        about = "Trained on: the response carries the loss, the prompt is masked."
        stages.append(stage_of("sft", about, sft_rows(trunk, examples, recipe.sft.max_tokens)))
    if recipe.feedback is not None:
        about, rows, pairs = feedback_stage(recipe, recipe.feedback, trunk, constitution, prompts)
        stages.append(stage_of("feedback", about, rows))
    if recipe.trains_reward_model:
        about = "Scored: the head reads one place of each row; chosen should score above rejected."
        stages.append(stage_of("reward_model", about, reward_rows(trunk, pairs, recipe.reward_model.max_tokens)))
    if recipe.rl is not None:
        stages.append(policy_stage(recipe, recipe.rl, trunk, [p for kind in KINDS for p in by_kind[kind]], pairs))
    return {"model": recipe.model, "stages": stages}


def feedback_stage(
    recipe: Recipe, settings: FeedbackSettings, trunk: Trunk, constitution: Constitution, prompts: Sequence[Prompt]
) -> tuple[str, list[Row], list[Pair]]:
    """What is said of the stage, its rows, and the pairs that come of it."""
    if settings.pairs:
        return "Read from files. No model is asked.", [], list(read_pairs(Path(settings.pairs[0])).pairs)[:ROWS]
    if settings.contrast is not None:
        about = "Sampled from: each prompt in the way that asks for the chosen response, then for the rejected. No loss."
        return about, *contrast_rows(recipe, settings, settings.contrast, trunk, prompts)
    if not settings.asks_judge:
        return "Sampled from: people compare the responses. No loss.", *people_rows(recipe, settings, trunk, prompts)
    about = "Asked of the judge, in both orders: which option is the likelier next token? No loss."
    return about, *feedback_rows(recipe, settings, trunk, constitution, prompts)


def stage_of(name: str, about: str, rows: list[Row]) -> dict[str, Any]:
    return {"stage": name, "about": about, "rows": rows}


def first_prompts(recipe: Recipe, trunk: Trunk) -> dict[str, list[Prompt]]:
    """The training prompts of each kind in the order of the prompt stage; they are not yet sorted by principle, which would
    take the model through all of them."""
    settings = recipe.prompts
    if settings is None:
        return {kind: [] for kind in KINDS}
    limit = context_length(trunk.model)
    with taken_prompts(
        prompts_of(settings), train=settings.train, test=settings.test, test_fraction=settings.test_fraction, seed=recipe.seed,
        shorter=limit,  # of a long file the first rows that fit are enough
    ) as taken:  # fmt: skip
        by_kind = {kind: taken.read("train", kind) for kind in KINDS}
    if recipe.revise is not None:
        check_red_team(taken.counts)
    return by_kind


def revise_rows(
    recipe: Recipe, settings: ReviseSettings, trunk: Trunk, constitution: Constitution, prompts: Sequence[Prompt]
) -> tuple[list[Row], list[tuple[Conversation, str]]]:
    """What the revise stage asks the model, and the last revision of each prompt as (conversation, text)."""
    shots = load_few_shots(Path(settings.few_shots)) if settings.few_shots else []
    recorder = Recorder(trunk, "base")
    originals = respond(
        recorder, prompts, seed=recipe.seed, what="revise", k=1, temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
    )  # fmt: skip
    first = [group[0] for group in originals]
    if settings.context is not None:
        revisions = answer_in_context(recorder, list(zip(prompts, first, strict=True)), settings, seed=recipe.seed)
        names = ["answer", "answer in context"]
    else:
        revisions = revise_batch(
            recorder, prompts, first, constitution, settings, seed=recipe.seed,
            few_shots=[message for shot in shots for message in shot],
        )  # fmt: skip
        names = ["answer", *(f"{what} {n + 1}" for n in range(settings.rounds) for what in ("critique", "revision"))]
    rows = []
    for name, conversations in zip(names, recorder.asked, strict=True):
        rows += question_rows(trunk, name, conversations)
    usable = [r for r in revisions if not r.excluded] or revisions
    last = {r.prompt_id: r.revision.text for r in usable}
    return rows, [(prompt.messages, last[prompt.id]) for prompt in prompts if prompt.id in last]


def question_rows(trunk: Trunk, name: str, conversations: Sequence[Conversation]) -> list[Row]:
    """Conversations that wait for the model to go on, padded on the left as in sampling."""
    encoded = [encode_prompt(trunk.tokenizer, conversation) for conversation in conversations]
    ids, attention = left_pad(encoded, "cpu")
    return [row_of(trunk, name, ids[i], attention[i], ids[i] * 0, conversation) for i, conversation in enumerate(conversations)]


def helpful_answers(
    recipe: Recipe, settings: ReviseSettings, trunk: Trunk, prompts: Sequence[Prompt]
) -> list[tuple[Conversation, str]]:
    """One of the base model's own answers that are fine-tuned on beside the revisions, where the recipe wants any."""
    if recipe.sft is None or not recipe.sft.helpful_fraction or not prompts:
        return []
    prompt = prompts[0]
    answers = respond(
        LocalSampler(trunk, "base"), [prompt], seed=recipe.seed, what="revise", k=1, temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
    )  # fmt: skip
    return [(prompt.messages, answers[0][0].text)]


def sft_rows(trunk: Trunk, examples: Sequence[tuple[Conversation, str]], limit: int | None) -> list[Row]:
    """Revisions, a helpful answer and examples from files as the fine-tuning sees them."""
    padded = pad(sft_tokens(trunk, examples, limit or trunk.room))
    return [
        row_of(trunk, "example", padded.ids[i], padded.attention[i], padded.mask[i], messages)
        for i, (messages, _) in enumerate(examples)
    ]


def people_rows(
    recipe: Recipe, settings: FeedbackSettings, trunk: Trunk, prompts: Sequence[Prompt]
) -> tuple[list[Row], list[Pair]]:
    """The prompts that are answered, and two answers to each as a pair in the order in which they were drawn: the place of
    people's verdicts, which nobody has given yet."""
    recorder = Recorder(trunk, "sft")
    groups = respond(
        recorder, prompts, seed=recipe.seed, what="feedback", k=2, temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
    )  # fmt: skip
    rows = [row for conversations in recorder.asked for row in question_rows(trunk, "prompt", conversations)]
    pairs = [
        Pair(prompt=prompt, chosen=a.text, rejected=b.text, group_id=prompt.id)
        for prompt, (a, b) in zip(prompts, groups, strict=True) if a.text != b.text
    ]  # fmt: skip
    return rows, pairs


def feedback_rows(
    recipe: Recipe, settings: FeedbackSettings, trunk: Trunk, constitution: Constitution, prompts: Sequence[Prompt]
) -> tuple[list[Row], list[Pair]]:
    """The judge's questions about two responses to each prompt, and the pairs that its answers make."""
    judge = settings.judge
    recorder = Recorder(load_trunk(judge.name, device=str(trunk.device)) if judge.kind == "model" else trunk, str(judge))
    groups = respond(
        LocalSampler(trunk, "sft"), prompts, seed=recipe.seed, what="feedback", k=2, temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
    )  # fmt: skip
    comparisons = comparisons_of(prompts, groups, constitution, recipe.seed)
    if not comparisons:
        raise InputError(
            "no principle with a preference text applies to these prompts", file=recipe.constitution or "constitution"
        )
    preferences = LogProbJudge(recorder)(comparisons)
    rows = []
    tokenizer = recorder.trunk.tokenizer
    for conversations, options in recorder.compared:
        found = question_rows(recorder.trunk, "question", conversations)
        for i, (row, choices) in enumerate(zip(found, options, strict=True)):
            row["what"] = "question" if i % 2 == 0 else "question, swapped"
            encoded = [encode_response(tokenizer, choice, end=False) for choice in choices]
            row["options"] = [{"ids": ids, "pieces": pieces_of(tokenizer, ids)} for ids in encoded]
        rows += found
    # Shown whatever the margin: where the stage would abstain, the row would look the same.
    verdicts = [judgment(c, p, rater_id="judge", abstain_below=0.0) for c, p in zip(comparisons, preferences, strict=True)]
    responses: dict[str, Response] = {r.id: r for group in groups for r in group}
    pairs = pairs_of(verdicts, {p.id: p for p in prompts}, responses, calibration=settings.calibration)
    if not pairs and settings.labelled_pairs:
        pairs = list(read_pairs(Path(settings.labelled_pairs)).pairs)
    return rows, pairs[:ROWS]


def contrast_rows(
    recipe: Recipe, settings: FeedbackSettings, contrast: ContrastSettings, trunk: Trunk, prompts: Sequence[Prompt]
) -> tuple[list[Row], list[Pair]]:
    """Each prompt as it is asked for the better and for the worse response, and the pairs that come of the two."""
    sampler, rows, texts = LocalSampler(trunk, "sft"), [], []
    for name, words in (("positive", contrast.positive), ("negative", contrast.negative)):
        asked = [asked_for(prompt, words) for prompt in prompts]
        rows += question_rows(trunk, name, [prompt.messages for prompt in asked])
        groups = respond(
            sampler, asked, seed=recipe.seed, what="feedback", k=1, temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
        )  # fmt: skip
        texts.append([group[0].text for group in groups])
    pairs = [
        Pair(prompt=prompt, chosen=better, rejected=worse, group_id=prompt.id)
        for prompt, better, worse in zip(prompts, *texts, strict=True)
        if better != worse
    ]
    return rows, pairs[:ROWS]


def reward_rows(trunk: Trunk, pairs: Sequence[Pair], limit: int | None) -> list[Row]:
    """Chosen and rejected of each pair, with the place where the score is read: the last real token."""
    rows = []
    for pair in pairs:
        padded = pad(pair_tokens(trunk, pair, limit or trunk.room))
        places = last_token(padded.attention).tolist()
        for i, side in enumerate(("chosen", "rejected")):
            row = row_of(trunk, side, padded.ids[i], padded.attention[i], padded.mask[i], pair.prompt.messages)
            rows.append({**row, "reward_position": places[i]})
    return rows


def policy_stage(
    recipe: Recipe, settings: AnyRLSettings, trunk: Trunk, prompts: Sequence[Prompt], pairs: Sequence[Pair]
) -> dict[str, Any]:
    """The last training: rollouts with the place of the score, or the pairs themselves."""
    if isinstance(settings, DPOSettings):
        scored = reward_rows(trunk, pairs, settings.max_tokens)
        rows = [{k: v for k, v in row.items() if k != "reward_position"} for row in scored]
        return stage_of("rl", "Compared: log-probabilities of the responses, chosen against rejected.", rows)
    return stage_of("rl", "Rolled out: the response is what is learned, its last token is where the score is paid.",
                    rl_rows(recipe.seed, settings, trunk, prompts))  # fmt: skip


def rl_rows(seed: int, rl: RolloutSettings, trunk: Trunk, prompts: Sequence[Prompt]) -> list[Row]:
    """The first prompts of step 0 rolled out; a policy without a role of its own is still the base."""
    settings = rl.model_copy(update={"prompts_per_step": ROWS, "samples_per_prompt": 1})
    seed = derive_seed(seed, "rl")
    batch = prompt_batch(prompts, 0, ROWS, seed)
    rollout = collect(trunk, batch, settings, derive_seed(seed, "rollout", 0))
    padded = pad([Tokens(ids, row[on].tolist()) for ids, row, on in
                  zip(rollout.prompt_ids, rollout.ids, rollout.mask, strict=True)])  # fmt: skip
    places = last_token(padded.mask).tolist()
    rows = []
    for i, prompt in enumerate(rollout.prompts):
        what = "rollout" if rollout.finished[i] else "rollout, cut off"
        row = row_of(trunk, what, padded.ids[i], padded.attention[i], padded.mask[i], prompt.messages)
        rows.append({**row, "reward_position": places[i]})
    return rows


# -- one row -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Padded:
    """Rows side by side as they are shown, padding on the right. ids, attention, mask: (B, T), made from lengths."""

    ids: Tensor
    attention: Tensor
    mask: Tensor


def pad(rows: Sequence[Tokens]) -> Padded:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row.prompt, *row.response] + [0] * (width - len(row)) for row in rows])
    place = torch.arange(width).unsqueeze(0)
    attention = place < torch.tensor([[len(row)] for row in rows])
    return Padded(ids, attention, attention & (place >= torch.tensor([[len(row.prompt)] for row in rows])))


def row_of(trunk: Trunk, what: str, ids: Tensor, attention: Tensor, mask: Tensor, messages: Conversation) -> Row:
    """One row of a batch as lists of equal length T. ids, attention, mask: (T,)."""
    numbers, real, response = ids.tolist(), attention.int().tolist(), mask.int().tolist()
    tokenizer = trunk.tokenizer
    places = [i for i, on in enumerate(real) if on]
    template = [0] * len(numbers)
    prompt = [i for i in places if not response[i]]
    for i, on in zip(prompt, template_tokens(tokenizer, [numbers[i] for i in prompt], messages), strict=True):
        template[i] = int(on)
    special = special_ids(tokenizer)
    return {
        "what": what,
        "ids": numbers,
        "pieces": pieces_of(tokenizer, numbers),
        "attention": real,
        "mask": response,
        "template": [int(bool(t) or (bool(on) and n in special)) for t, on, n in zip(template, real, numbers, strict=True)],
        "reward_position": None,
    }


def special_ids(tokenizer: Any) -> set[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def template_tokens(tokenizer: Any, ids: Sequence[int], messages: Sequence[Message]) -> list[bool]:
    """True on the tokens of a rendered prompt that belong to no message: control tokens, but also a template's plain words,
    such as `Human:`. A content that is not found as it stands (some templates trim) leaves its part unmarked."""
    ends = [len(decode(tokenizer, ids[: i + 1])) for i in range(len(ids))]
    text = decode(tokenizer, ids)
    spans, cursor = [], 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, cursor)
        if start < 0:
            return [False] * len(ids)
        cursor = start + len(content)
        spans.append((start, cursor))
    starts = [0, *ends[:-1]]
    return [
        not any(start < stop and end > begin for begin, stop in spans)
        for start, end in zip(starts, ends, strict=True)
    ]  # fmt: skip


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


MARKS = "⟨⟩⟦⟧★│∅"


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each id stands for. Control characters, and the marks that the display uses, are spelled out, so that the text
    of a model can neither move the cursor nor pass for a mark; a part of a character is shown as the tokenizer's own name."""
    pieces = []
    for number in ids:
        name = str(tokenizer.convert_ids_to_tokens(number))
        text = decode(tokenizer, [number])
        if "\ufffd" in text:
            text = name
        elif name[:1] in ("▁", "Ġ") and text[:1] != " ":  # decoding a token alone drops its space in some tokenizers
            text = " " + text
        pieces.append("".join(c if c.isprintable() and c not in MARKS else spelled(c) for c in text))
    return pieces


def spelled(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


# -- on the terminal -----------------------------------------------------------------------------------------------------

LEGEND = (
    ("How│ can", "cyan", "prompt, read but not learned; │ is between tokens"),
    ("⟨<|user|>⟩", "magenta", "special token or chat template"),
    ("⟦No│.⟧", "bold green", "response tokens, mask 1: what sft and rl learn from"),
    ("★", "bold white on red", "the reward belongs to the token before"),
    ("∅×3", "dim", "padding, which nothing attends to"),
)


def print_batches(batches: dict[str, Any]) -> None:
    """The rows in colour; every colour has a mark beside it, so that nothing is lost without one."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.print(Text("Legend", style="bold"))
    for mark, style, words in LEGEND:
        console.print(Text.assemble("  ", (f"{mark:12}", style), words))
    console.print("Model output that a run would have by then is sampled from the base model.", style="dim")
    for stage in batches["stages"]:
        console.print(Text.assemble("\n", (stage["stage"], "bold underline"), f": {stage['about']}"))
        if not stage["rows"]:
            console.print("  nothing to show: the sampled responses were all equal")
        for row in stage["rows"]:
            console.print(Text(f"\n  {summary_of(row)}", style="bold"))
            real = [str(n) for n, on in zip(row["ids"], row["attention"], strict=True) if on]
            lines = [text_of(row), Text(f"ids {' '.join(real)}", style="dim")]
            if "options" in row:
                lines.append(options_of(row))
            for line in lines:
                console.print(Padding(line, (0, 0, 0, 4), expand=False))


def summary_of(row: Row) -> str:
    """A row in figures."""
    real = sum(row["attention"])
    parts = [f"{row['what']}: {real} tokens"]
    if padding := len(row["ids"]) - real:
        parts.append(f"{padding} of padding")
    if any(row["mask"]):
        parts.append(f"{sum(row['mask'])} of the response")
    if row["reward_position"] is not None:
        parts.append(f"reward at position {row['reward_position']}")
    return ", ".join(parts)


def text_of(row: Row) -> Text:
    """A row with its marks and colours."""
    from rich.text import Text

    text = Text()
    length = len(row["ids"])
    before = ""  # what stands to the left: a line parts two plain tokens, the other marks part by themselves
    for i in range(length):
        piece, template, response = row["pieces"][i], row["template"][i], row["mask"][i]
        if not row["attention"][i]:
            if i == 0 or row["attention"][i - 1]:
                stop = next((j for j in range(i, length) if row["attention"][j]), length)
                text.append(f"∅×{stop - i}", style="dim")
            before = ""
            continue
        if response and not row["mask"][i - 1]:
            text.append("⟦", style="bold green")
            before = ""
        if before == "plain" and not template:
            text.append("│", style="dim")
        style = "magenta" if template else "bold green" if response else "cyan"
        text.append(f"⟨{piece}⟩" if template else piece, style=style)
        before = "" if template else "plain"
        if response and (i + 1 == length or not row["mask"][i + 1]):
            text.append("⟧", style="bold green")
        if i == row["reward_position"]:
            text.append("★", style="bold white on red")
    return text


def options_of(row: Row) -> Text:
    """The continuations whose log-probabilities are compared."""
    from rich.text import Text

    text = Text("compared: ", style="bold")
    for number, option in enumerate(row["options"]):
        text.append(" against " if number else "", style="not bold")
        text.append(f"⟦{'│'.join(option['pieces'])}⟧", style="bold yellow")
        text.append(f" (ids {' '.join(map(str, option['ids']))})", style="dim not bold")
    return text
