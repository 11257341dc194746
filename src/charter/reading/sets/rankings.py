"""Sets that a reward model is asked: a prompt with better and worse answers. HHH, hh-rlhf, RewardBench 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

from charter.reading.pairs import decided_pair
from charter.reading.rows import Row
from charter.reading.sets.choices import context_of
from charter.reading.sets.items import Item
from charter.records import Prompt, content_id

TIES = "Ties"
TIE = "a tie"
SECTIONS = {
    "chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "chat_hard": ("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
                  "llmbar-adver-manual"),
    "safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}  # fmt: skip
"""The subsets of each section of RewardBench."""
COUNTS = {
    "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    "mt-bench-hard": 37, "math-prm": 984, "refusals-dangerous": 100, "refusals-offensive": 100, "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    "xstest-should-refuse": 154, "xstest-should-respond": 250, "donotanswer": 136, "hep-cpp": 164, "hep-go": 164,
    "hep-java": 164, "hep-js": 164, "hep-python": 164, "hep-rust": 164,
}  # fmt: skip
"""What a subset weighs in its section. The 447 rows of math-prm weigh as much as the code."""
SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}


def hhh_pair(row: Row) -> Item | str:
    """438-HHH for a reward model: both whole conversations."""
    changed = {"chosen": row.values["text_correct"], "rejected": row.values["text_incorrect"]}
    return pair_item(Row(changed, row.file, row.line), cluster=context_of(row))


def pair_item(row: Row, *, cluster: str | None = None, group: str | None = None, id: str = "") -> Item | str:
    """A pair, its better answer first, or the reason to leave it out. Dialogues with one opening are a cluster."""
    pair = decided_pair(row)
    if isinstance(pair, str) or pair.weight == 0.5:
        return pair if isinstance(pair, str) else TIE
    id = id or content_id(pair.prompt.id, pair.chosen, pair.rejected)
    return Item(id, pair.prompt, (pair.chosen, pair.rejected), {"n_right": 1}, cluster or pair.group_id, group)


def reward_bench_item(row: Row) -> Item | str:
    """RewardBench (Lambert et al. 2024, arXiv:2403.13787): a pair with its subset."""
    subset = row.text("subset")
    if subset not in SECTION_OF:
        return f"the subset {subset!r} belongs to none of the four sections"
    values = {name: row.values.get(name) for name in ("prompt", "chosen", "rejected")}
    return pair_item(Row(values, row.file, row.line), group=subset, id=f"{subset}/{row.values.get('id')}")


def reward_bench_2_item(row: Row) -> Item | str:
    """RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): one right answer among four, or, in Ties, several right ones."""
    right, wrong = (texts(row, name) for name in ("chosen", "rejected"))
    subset, id = row.text("subset"), str(row.values.get("id"))
    if not wrong or len(right) < 1 or (len(right) > 1 and subset != TIES):
        raise row.bad("needs one right answer (several in Ties) and wrong ones", "chosen")
    prompt = Prompt.ask(row.text("prompt"))
    return Item(f"{subset}/{id}", prompt, (*right, *wrong), {"n_right": len(right)}, prompt.id, subset)


def texts(row: Row, field: str) -> Sequence[str]:
    """A list of texts."""
    value = row.values.get(field)
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise row.bad("must be a list of answers", field)
    return value
