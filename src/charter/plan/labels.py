"""What the labels of a recipe cost: hours and money of people, beside those of the judge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from charter.endpoints.settings import EndpointSettings
from charter.errors import InputError
from charter.run.progress import duration
from charter.stages.feedback.plan import judging
from charter.stages.feedback.settings import FeedbackSettings
from charter.stages.load import Counted, Load


@dataclass(frozen=True)
class Rates:
    """What a comparison takes a person, in ``seconds`` and in money (``price``); how many ``raters`` compare the same two
    responses; and what an hour of the machine costs that runs a judge (``machine_price``), None if nobody said."""

    seconds: float = 10.0
    price: float = 0.10
    raters: int = 1
    machine_price: float | None = None


def labels_of(counted: Counted, rates: Rates, seconds_of: Callable[[Load], float]) -> dict[str, Any]:
    """The comparisons of all rounds, and what they take people and the judge, in hours and money. Money of the judge is None
    where no price is known, its hours where a server answers. InputError if the recipe compares nothing."""
    recipe, settings = counted.recipe, counted.recipe.feedback
    if settings is None or not settings.samples or settings.contrast is not None:
        raise InputError("this recipe compares no responses, so its labels cost nothing; leave --labels out")
    pairs = math.comb(settings.responses_per_prompt, 2)
    share = settings.human_share if settings.raters == "mixed" else 1.0
    by_people = max(1, round(share * counted.n_asked)) * pairs * rates.raters * recipe.rounds
    people = {"comparisons": by_people, "hours": round(by_people * rates.seconds / 3600, 2),
              "money": round(by_people * rates.price, 2)}  # fmt: skip
    return {"comparisons": counted.n_pairs * recipe.rounds, "rates": asdict(rates), "share": share, "people": people,
            "judge": judge_cost(counted, settings, rates, seconds_of)}  # fmt: skip


def judge_cost(counted: Counted, settings: FeedbackSettings, rates: Rates, seconds_of: Callable[[Load], float]) -> dict[str, Any]:
    """Questions, tokens, hours and money of the judge on the same comparisons, its labelled pairs included."""
    recipe = counted.recipe
    work = counted.load("labels")
    questions = judging(work, counted, settings)
    result: dict[str, Any] = {"name": str(settings.judge), "questions": round(questions * recipe.rounds)}
    if settings.judge.kind == "endpoint":
        asked = work.asked[settings.judge.name]
        money = money_of(recipe.endpoints[settings.judge.name], asked.read, asked.written)
        tokens, hours = asked.read + asked.written, None
    else:
        tokens, hours = work.scored, seconds_of(work) / 3600
        money = None if rates.machine_price is None else hours * rates.machine_price
    n = recipe.rounds
    return result | {"tokens": round(tokens * n), "hours": None if hours is None else round(hours * n, 4),
                     "money": None if money is None else round(money * n, 4)}  # fmt: skip


def money_of(endpoint: EndpointSettings, read: float, written: float) -> float | None:
    """The price of tokens read and written, None without prices."""
    if endpoint.input_price is None or endpoint.output_price is None:
        return None
    return (read * endpoint.input_price + written * endpoint.output_price) / 1e6


def label_lines(figures: dict[str, Any], who: str) -> list[str]:
    """The cost of labels as lines for people: of ``people`` and the judge, or of the ``judge`` alone."""
    rates, people, judge = figures["rates"], figures["people"], figures["judge"]
    lines = [f"labels    {figures['comparisons']:,} comparisons"]
    if who == "people":
        each = f", {rates['raters']} raters each" if rates["raters"] > 1 else ""
        part = f" ({figures['share']:.0%} of the prompts)" if figures["share"] < 1 else ""
        cost = f"{people['hours']:,.2f} hours, money {people['money']:,.2f}"
        rate = f"at {rates['seconds']:g} s and {rates['price']:.2f} a comparison"
        lines.append(f"  people  {people['comparisons']:,} answers{part}{each}: {cost} {rate}")
    hours = "as long as its server takes" if judge["hours"] is None else f"{duration(judge['hours'] * 3600)} on this machine"
    price = "no prices given" if judge["money"] is None else f"money {judge['money']:,.4g}"
    return [*lines, f"  judge   {judge['name']}: {judge['questions']:,} questions, {judge['tokens']:,} tokens: {hours}, {price}"]
