"""Settings of the feedback stage: who compares, or where pairs come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from charter.recipe.settings import NonNegative, Positive, SamplingSettings, Settings
from charter.recipe.source import File, Responder, Source

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class ContrastSettings(Settings):
    positive: str
    """Text before the last turn of the prompt, for the chosen response."""
    negative: str
    """Text before the last turn of the prompt, for the rejected response."""


class FeedbackSettings(SamplingSettings):
    generator: Responder = Source("run", "sft")
    """Model that writes the responses to compare: `base`, `sft`, the folder of another model, or `endpoint:NAME`."""
    raters: Literal["judge", "human", "mixed"] = "judge"
    """Who compares: the judge; people, on the page of `charter label RUN`; or the judge, with people checking some prompts."""
    human_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """With `mixed`: share of the prompts on which people vote; on these prompts their votes replace the judge's."""
    prompts: Positive = 800
    """Number of prompts, red-team and benign together, for which responses are sampled and compared."""
    responses_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 2
    """K: every pair of the K is compared."""
    sampling: Literal["plain", "diverse"] = "plain"
    """How the K responses come to differ: by chance, or with `diverse` by another line of `stances` as the system turn of
    each, drawn for the prompt. Pairs and votes have the prompt without this line. The model needs a chat template with a
    system turn."""
    stances: File | None = None
    """Text file of stances and styles, one system turn a line, at least K lines; by default Charter's own."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the responses."""
    judge: Responder = Source("run", "base")
    """Model that compares: `base`, `sft`, the folder of another model, or `endpoint:NAME`."""
    protocol: Literal["auto", "letters", "yes_no", "dialogue", "rubric", "likelihood", "reasoned"] = "auto"
    """How Charter reads the judge: two responses as A and B (`letters`); each response alone, Yes or No (`yes_no`); the same
    question in the conversation (`dialogue`); the criteria of the principle (`rubric`); the likelihood of the responses under
    the principle (`likelihood`); A and B after reasons that the judge writes (`reasoned`). `auto` takes the protocol, except
    `reasoned`, that is right most often on half of the labelled pairs (`letters` without labelled pairs)."""
    priorities: bool = False
    """Apply the fitting principles one after the other, the highest `priority` or `authority` first. The first principle whose
    margin exceeds the noise measured on the labelled pairs decides, and the judgment names it. With `false` one drawn
    principle decides."""
    abstain_below: NonNegative = 0.1
    """A comparison is a tie, and gives no pair, if the judge's swap-averaged margin is below this many nats."""
    calibration: Annotated[float, Field(gt=0)] = 1.0
    """Temperature that divides the judge's margin before it becomes a soft label."""
    labelled_pairs: File | None = None
    """Pairs with known answers on which the judge must do better than chance before it labels anything."""
    gate_pairs: Positive = 300
    """How many of the labelled pairs the gate reads."""
    contrast: ContrastSettings | None = None
    """Make pairs without comparing: one text before the last turn gives the chosen response, another the rejected response
    (RLCD)."""
    revisions: bool = False
    """Make pairs from the revise stage: the last usable revision is chosen, the answer that it revises is rejected."""
    pairs: list[File] = []
    """Take pairs from these files; nothing is sampled and nobody compares. Rows have prompt, chosen and rejected, as JSONL,
    JSON, CSV or Parquet; hh-rlhf is read as published."""
    max_pairs: Positive | None = None
    """At most this many pairs of the files; Charter draws whole prompts."""

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> FeedbackSettings:
        """Pairs by contrast are judged by nobody, people need no judge, and pairs from files need neither."""
        known = {"labelled_pairs", "gate_pairs"}
        judging = {"judge", "protocol", "priorities", "abstain_below", "calibration"}
        everything = set(type(self).model_fields)
        if self.pairs:
            self.refuse_unread(everything - known - {"pairs", "max_pairs"}, "pairs are taken from files")
        if self.revisions:
            self.refuse_unread(everything - known - {"revisions"}, "pairs are made of revisions")
        if self.max_pairs is not None and not self.pairs:
            raise ValueError("max_pairs is about the files in pairs; leave it out")
        if self.contrast is not None:
            unread = {"responses_per_prompt", "sampling", "stances", "raters", "human_share"} | judging | known
            self.refuse_unread(unread, "contrast makes pairs without a judge")
        if self.stances is not None and self.sampling == "plain":
            raise ValueError("stances is about sampling: diverse; leave it out")
        if self.raters != "mixed" and "human_share" in self.model_fields_set:
            raise ValueError("human_share is about raters: mixed; leave it out")
        if self.priorities and self.labelled_pairs is None:
            raise ValueError("priorities needs labelled_pairs, on which the noise of the judge's margins is measured")
        if self.protocol == "reasoned":
            self.refuse_unread({"calibration"}, "protocol: reasoned clamps the labels to .4 to .6")
            if self.abstain_below >= 0.4:  # nats; log(.6 / .4) is .405
                raise ValueError("abstain_below: no margin of protocol: reasoned exceeds .4 nats, so all would be ties; lower it")
        if self.raters == "human":
            self.refuse_unread(judging, "with raters: human no judge is asked")
        return self

    @property
    def asks_judge(self) -> bool:
        """Whether a judge compares responses."""
        return self.samples and self.contrast is None and self.raters != "human"

    @property
    def samples(self) -> bool:
        """Whether responses are sampled for it."""
        return not self.pairs and not self.revisions

    @property
    def reads_prompts(self) -> bool:
        return self.samples

    @property
    def reads_principles(self) -> bool:
        return self.asks_judge

    @property
    def asks(self) -> dict[str, Source]:
        if not self.samples:
            return {}
        return {"generator": self.generator} | ({"judge": self.judge} if self.asks_judge else {})

    def check_in(self, recipe: Recipe) -> None:
        if self.revisions and recipe.revise is None:
            raise ValueError("feedback.revisions makes pairs of the revise stage, and revise is null")
        if self.protocol == "likelihood" and self.judge.kind == "endpoint":
            raise ValueError("feedback.protocol: a server gives no likelihood of whole responses; use another protocol")
        if recipe.rounds > 1 and self.raters != "judge":
            raise ValueError("rounds asks the judge anew each time; people are asked in a run of one round")
