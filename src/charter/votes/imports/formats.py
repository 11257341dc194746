"""The formats of feedback that ``charter import`` reads, by the columns of their first row. Nothing heavy is imported here: the
command line lists these names."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charter.reading.rows import Row
    from charter.records import RaterKind


@dataclass(frozen=True)
class Rater:
    """Who judged."""

    id: str
    kind: RaterKind


@dataclass(frozen=True)
class Format:
    """``reader``: module and function of this package. ``rater``: who judged where the file does not say. ``fits``: whether these
    are the columns of a first row."""

    reader: str
    rater: Rater
    fits: Callable[[Set[str]], object]


PROMPTS = {"prompt", "instruction", "question", "query", "messages", "conversations", "conversation"}
"""Columns of a prompt beside chosen and rejected, which in hh-rlhf are whole dialogues."""
PAIR_NAMES = (("answer1", "answer2"), ("response1", "response2"), ("response_a", "response_b"), ("text1", "text2"),
              ("answer_a", "answer_b"), ("left", "right"))  # fmt: skip
"""Usual columns of the two answers that were compared."""
LABEL_STUDIO = ({"data", "annotations"}, {"task", "result"}, {"annotator", "annotation_id"})

FORMATS: dict[str, Format] = {
    "hh-red-team": Format("dialogues:read_attempt", Rater("hh-red-team", "human"), lambda c: {"transcript", "rating"} <= c),
    "oasst": Format("dialogues:read_tree", Rater("oasst-volunteers", "human"), lambda c: "message_tree_id" in c),
    "ultrafeedback": Format("scores:read_ultrafeedback", Rater("gpt-4", "judge"), lambda c: {"instruction", "completions"} <= c),
    "alpaca-eval": Format("scores:read_alpaca_eval", Rater("alpaca-eval", "judge"),
                          lambda c: {"output_1", "output_2", "preference"} <= c),
    "label-studio": Format("label_studio:read_task", Rater("label-studio", "human"),
                           lambda c: any(names <= c for names in LABEL_STUDIO)),
    "argilla": Format("argilla:read_record", Rater("argilla", "human"),
                      lambda c: "fields" in c or any(n.endswith(".responses") for n in c)),
    "prism": Format("people:read_prism", Rater("prism", "human"), lambda c: {"conversation_history", "user_id"} <= c),
    "community-alignment": Format("people:read_community", Rater("community-alignment", "human"),
                                  lambda c: {"first_turn_prompt", "first_turn_preferred_response"} <= c),
    "multipref": Format("people:read_multipref", Rater("multipref", "human"),
                        lambda c: {"completion_a", "completion_b", "normal_worker_annotations"} <= c),
    "helpsteer3": Format("people:read_helpsteer3", Rater("helpsteer3", "human"),
                         lambda c: {"context", "response1", "response2", "individual_preference"} <= c),
    "votes": Format("tables:read_choice", Rater("unknown", "human"),
                    lambda c: "winner" in c and PROMPTS & c and any(c >= set(pair) for pair in PAIR_NAMES)),
    "arena": Format("arena:read_vote", Rater("arena-users", "human"),
                    lambda c: {"model_a", "model_b"} <= c and {"winner", "winner_model_a"} & c),
    "annotated-pairs": Format("annotated:read_file", Rater("annotator", "human"),
                              lambda c: {"annotators", "comparisons"} <= c),
    "grouped": Format("tables:read_group", Rater("unknown", "human"), lambda c: {"responses", "rankings"} <= c),
    "unpaired": Format("tables:read_label", Rater("unknown", "human"), lambda c: {"completion", "label"} <= c),
    "trl": Format("tables:read_pair", Rater("unknown", "human"), lambda c: {"chosen", "rejected"} <= c and PROMPTS & c),
    "hh": Format("tables:read_pair", Rater("hh-crowdworkers", "human"), lambda c: {"chosen", "rejected"} <= c),
}  # fmt: skip
RAW = "raw"
NAMES = (*FORMATS, RAW)
# Names of exports that differ in the container or the form of their cells and not in what they contain.
CONTAINERS = ("trl-conversational", "unpaired-conversational", "csv", "parquet", "datasets")


def recognise(row: Row) -> str:
    """The format whose columns a first row has. InputError where none fits."""
    columns = row.values.keys()
    for name, format in FORMATS.items():
        if format.fits(columns):
            return name
    names = ", ".join(map(str, columns))[:200] or "none"
    if {"model_a", "model_1"} & columns:
        raise row.bad(f"votes on models without their answers (columns here: {names}); rate them with charter ratings FILE")
    raise row.bad(
        f"unknown format (columns here: {names}); votes on two answers have the columns prompt, answer_a, answer_b, winner and "
        f"rater; for another format use --from, one of {', '.join(NAMES)}"
    )
