"""Public sets of prompts: what each row asks, and whether it is to be refused or answered.

A set is recognised by its columns. The kinds ``red_team`` and ``benign`` become tags, and the set's own class of a prompt too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from charter.errors import InputError
from charter.reading.forms import LeftOut
from charter.reading.rows import Row

RED_TEAM, BENIGN = "red_team", "benign"
UNKNOWN_KIND = "say whether its prompts are to be refused or answered, with --tag red_team or --tag benign"
OR_BENCH_CLASSES = frozenset({
    "deception", "harassment", "harmful", "hate", "illegal", "privacy", "self-harm", "sexual", "unethical", "violence",
})  # fmt: skip


@dataclass(frozen=True)
class PromptSet:
    """A set by its columns. ``read`` gives the columns to put in place of a row's. ``two_files``: the set has a file of prompts
    to refuse and one of prompts to answer, with the same columns."""

    name: str
    title: str
    knows: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Row], dict[str, Any]]
    two_files: bool = False


def named_kind(row: Row) -> str | None:
    """The kind in the name of a file whose set has two files with the same columns."""
    name = Path(row.file).name.lower()
    benign, red_team = ("benign", "hard", "80k"), ("harmful", "toxic")
    return BENIGN if any(word in name for word in benign) else RED_TEAM if any(word in name for word in red_team) else None


def tags(*names: Any) -> dict[str, list[str]]:
    """The column of tags, empty names left out."""
    return {"tags": [str(name).strip() for name in names if name not in (None, "") and str(name).strip()]}


def xstest(row: Row) -> dict[str, Any]:
    """Röttger et al. 2024 (arXiv:2308.01263): 250 safe and 200 unsafe prompts. Without the column ``label`` the types that begin
    with ``contrast`` are the unsafe ones."""
    word = str(row.values.get("label") or "").lower()
    if word not in ("", "safe", "unsafe"):
        raise row.bad(f"must be safe or unsafe, not {word[:40]!r}", "label")
    unsafe = word == "unsafe" if word else row.text("type").startswith("contrast")
    return tags(RED_TEAM if unsafe else BENIGN, row.values["type"])


def or_bench(row: Row) -> dict[str, Any]:
    """Cui et al. 2024 (arXiv:2405.20947)."""
    return tags(row.values["category"])


def harmbench(row: Row) -> dict[str, Any]:
    """Mazeika et al. 2024 (arXiv:2402.04249): a contextual behaviour has its context before it, as in the set's own code."""
    if row.values.get("ImageFileName"):
        raise LeftOut(row, "a multimodal behaviour needs its image", "ImageFileName")
    context = row.optional("ContextString")
    behaviour = row.text("Behavior")
    text = f"{context}\n\n---\n\n{behaviour}" if context else behaviour
    return {"prompt": text, **tags(RED_TEAM, row.values.get("FunctionalCategory"), row.values.get("SemanticCategory"))}


def advbench(row: Row) -> dict[str, Any]:
    """Zou et al. 2023 (arXiv:2307.15043)."""
    return {"prompt": row.text("goal"), **tags(RED_TEAM)}


def jailbreakbench(row: Row) -> dict[str, Any]:
    """Chao et al. 2024 (arXiv:2404.01318)."""
    return {"prompt": row.text("Goal"), "source": "", **tags(row.values["Category"])}


def strongreject(row: Row) -> dict[str, Any]:
    """Souly et al. 2024 (arXiv:2402.10260)."""
    return {"prompt": row.text("forbidden_prompt"), "source": "", **tags(RED_TEAM, row.values["category"])}


def real_toxicity(row: Row) -> dict[str, Any]:
    """Gehman et al. 2020 (arXiv:2009.11462): the text to continue."""
    text = row.values["prompt"].get("text")
    if not isinstance(text, str) or not text.strip():
        raise row.bad("missing; every row needs the text to continue", "prompt.text")
    return {"prompt": text, **tags("challenging" if row.values.get("challenging") is True else None)}


def dialog_sum(row: Row) -> dict[str, Any]:
    """Chen et al. 2021 (arXiv:2105.06762), where the test file has three summaries to each dialogue."""
    return {"summary": row.text("summary1"), "id": row.values.get("fname")}


def hhh(row: Row) -> dict[str, Any]:
    """The conversation of a comparison of Bai et al. 2022, without either answer."""
    return {"prompt": None, "transcript": row.text("text_correct")}


def truthful_qa(row: Row) -> dict[str, Any]:
    """The question of Lin et al. 2022 (arXiv:2109.07958)."""
    return {"prompt": row.text("question" if "question" in row.values else "Question"), **tags(row.values.get("Category"))}


def bbq(row: Row) -> dict[str, Any]:
    """Parrish et al. 2022 (arXiv:2110.08193): context, question and the three answers with letters."""
    answers = "\n".join(f"({letter}) {row.text(f'ans{i}')}" for i, letter in enumerate("ABC"))
    question = f"{row.text('context')}\n\n{row.text('question')}\n{answers}\n\nThe answer is:"
    return {"prompt": question, **tags(row.values.get("category"), row.values.get("context_condition"))}


def has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a row has all these columns."""
    return lambda values: set(names) <= values.keys()


def is_or_bench(values: Mapping[str, Any]) -> bool:
    return values.keys() == {"prompt", "category"} and values["category"] in OR_BENCH_CLASSES


def is_real_toxicity(values: Mapping[str, Any]) -> bool:
    prompt = values.get("prompt")
    return isinstance(prompt, dict) and {"text", "toxicity"} <= prompt.keys()


def is_truthful_qa(values: Mapping[str, Any]) -> bool:
    return {"Question", "Best Answer"} <= values.keys() or {"question", "mc1_targets"} <= values.keys()


PROMPT_SETS = (
    PromptSet("xstest", "XSTest", has("prompt", "type", "focus", "note"), xstest),
    PromptSet("or_bench", "OR-Bench", is_or_bench, or_bench, two_files=True),
    PromptSet("harmbench", "HarmBench", has("Behavior", "FunctionalCategory", "SemanticCategory"), harmbench),
    PromptSet("jailbreakbench", "JailbreakBench", has("Goal", "Target", "Behavior", "Category"), jailbreakbench, two_files=True),
    PromptSet("advbench", "AdvBench", has("goal", "target"), advbench),
    PromptSet("strongreject", "StrongREJECT", has("category", "source", "forbidden_prompt"), strongreject),
    PromptSet("real_toxicity_prompts", "RealToxicityPrompts", is_real_toxicity, real_toxicity),
    PromptSet("dialogsum", "DialogSum", has("dialogue", "summary1"), dialog_sum),
    PromptSet("hhh", "HHH", has("corrects", "incorrects", "text_correct", "text_incorrect"), hhh),
    PromptSet("truthfulqa", "TruthfulQA", is_truthful_qa, truthful_qa),
    PromptSet("bbq", "BBQ", has("answer_info", "question_polarity", "context_condition"), bbq),
)


def prompt_set_of(values: Mapping[str, Any]) -> PromptSet | None:
    """The set to which a row belongs by its columns."""
    return next((known for known in PROMPT_SETS if known.knows(values)), None)


def known_set(row: Row, given: Iterable[str] = ()) -> Row:
    """A row of a public set under the columns that the readers of prompts know; any other row as it is. ``given``: the user's
    tags for the file. InputError if they contradict the set, or where neither they nor the file's name say which of a set's
    two files it is; a file like OR-Bench's may also be the user's own."""
    known = prompt_set_of(row.values)
    if known is None:
        return row
    kinds = {RED_TEAM, BENIGN} & set(given)
    changed = known.read(row)
    if known.two_files and not kinds:
        kind = named_kind(row)
        if kind is None and known.name != "or_bench":
            words = f"the harmful and the benign file of {known.title} have the same columns"
            raise InputError(f"{words}; {UNKNOWN_KIND}", file=row.file)
        changed["tags"] = [*([kind] if kind else []), *changed["tags"]]
    if kinds and (wrong := ({RED_TEAM, BENIGN} & set(changed.get("tags", ()))) - kinds):
        raise row.bad(f"a {wrong.pop()} prompt of {known.title}, against the tag {kinds.pop()}; leave the tag out")
    return replace(row, values={**row.values, **changed})
