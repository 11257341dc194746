"""Settings of the feedback stage: who compares, or where pairs come from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from charter.recipe.settings import LoRASettings, NonNegative, Positive, Rate, Settings, Share, StageSettings, TrainingSettings
from charter.recipe.source import Answerer, File, MeasureSource, ModelName, NewFolder, Responder, RewardSource, ScorerSource, Source

if TYPE_CHECKING:
    from charter.recipe.recipe import Recipe


class ContrastSettings(Settings):
    positive: str
    """Put before the last turn of the prompt to which the chosen response is sampled."""
    negative: str
    """The same for the rejected one."""


class FeedbackSettings(Settings):
    generator: str = "sft"
    """Who gives the responses that are compared: `base`, `sft`, the folder of another model, or `endpoint:NAME`."""
    raters: Literal["judge", "human", "mixed"] = "judge"
    """Who compares: the judge; people, on the page of `charter label RUN`; or the judge, with people checking some prompts."""
    human_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """With `mixed`: share of the prompts that people are asked about; there their votes replace the judge's."""
    prompts: Positive = 800
    """Prompts, red-team and benign together, to which responses are sampled and compared."""
    responses_per_prompt: Annotated[int, Field(ge=2, strict=True)] = 2
    """K: every pair of the K is compared."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the responses."""
    max_new_tokens: Positive = 96
    """Longest response, in tokens."""
    judge: str = "base"
    """Who compares: `base`, `sft`, the folder of another model, or `endpoint:NAME`."""
    abstain_below: NonNegative = 0.1
    """No pair is made where the judge's swap-averaged margin is smaller than this many nats."""
    calibration: Annotated[float, Field(gt=0)] = 1.0
    """Temperature that divides the judge's margin before it becomes a soft label."""
    labelled_pairs: str | None = None
    """Pairs with known answers on which the judge must do better than chance before it labels anything."""
    gate_pairs: Positive = 300
    """How many of the labelled pairs the gate reads."""
    contrast: ContrastSettings | None = None
    """Make pairs without comparing: the chosen response is asked for in one way and the rejected in another (RLCD)."""
    revisions: bool = False
    """Make pairs of the revise stage: the last usable revision is chosen over the answer that it began from."""
    pairs: list[str] = []
    """Take pairs from these files instead: nothing is sampled and nobody compares. Prompt, chosen and rejected, as JSONL, JSON,
    CSV or Parquet; hh-rlhf as it is."""
    max_pairs: Positive | None = None
    """At most this many pairs of the files, whole prompts by a draw."""

    @model_validator(mode="after")
    def check_that_options_are_read(self) -> FeedbackSettings:
        """Pairs by contrast are judged by nobody, people need no judge, and pairs from files need neither."""
        if self.pairs and (given := sorted(self.model_fields_set - {"pairs", "max_pairs", "labelled_pairs", "gate_pairs"})):
            raise ValueError(f"pairs are taken from files, so {given[0]} would not be read; leave it out")
        if self.revisions and (given := sorted(self.model_fields_set - {"revisions", "labelled_pairs", "gate_pairs"})):
            raise ValueError(f"pairs are made of revisions, so {given[0]} would not be read; leave it out")
        if self.max_pairs is not None and not self.pairs:
            raise ValueError("max_pairs is about the files in pairs; leave it out")
        unread = {"responses_per_prompt", "raters", "human_share", "judge", "abstain_below", "calibration", "labelled_pairs",
                  "gate_pairs"}  # fmt: skip
        if self.contrast is not None and (given := sorted(unread & self.model_fields_set)):
            raise ValueError(f"contrast makes pairs without a judge, so {given[0]} would not be read; leave it out")
        if self.raters != "mixed" and "human_share" in self.model_fields_set:
            raise ValueError("human_share is about raters: mixed; leave it out")
        unread = {"judge", "abstain_below", "calibration"}
        if self.raters == "human" and (given := sorted(unread & self.model_fields_set)):
            raise ValueError(f"with raters: human no judge is asked, so {given[0]} would not be read; leave it out")
        return self

    @property
    def asks_judge(self) -> bool:
        """Whether a judge compares responses."""
        return self.samples and self.contrast is None and self.raters != "human"

    @property
    def samples(self) -> bool:
        """Whether responses are sampled for it."""
        return not self.pairs and not self.revisions
