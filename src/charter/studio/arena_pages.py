"""The arena: two models whose names are hidden answer, a person votes, and only then reads the names.

Votes are judgments like any other, in the folder `studio` beside their prompts and responses. The answers appear together when
both are there, so that speed does not tell one model from the other.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response as WebResponse

from charter.errors import InputError
from charter.raters.reports import ratings_report
from charter.raters.vote_files import read_votes
from charter.records import Generation, LabelSet, Message, Prompt, Rank, Response
from charter.serving.protocol import ApiError, ApiMessage, ChatRequest
from charter.studio.chat_pages import DEFAULT_TOKENS, answers_of
from charter.studio.models import names_of
from charter.studio.site import Studio, studio_of
from charter.web import tables as t
from charter.web.access import LEADS, Visitor
from charter.web.answers import BadAnswer, text_of
from charter.web.label_app import Page
from charter.web.red_team import open_dialogue, waiting
from charter.web.site import allow, to
from charter.web.store import RaterAnswer

Lead = Annotated[Visitor, Depends(allow(LEADS))]
MOST_CHARACTERS = 4000
TEMPERATURE = 1.0
VERDICTS: dict[str, tuple[Rank, Rank]] = {"a": (1, 2), "b": (2, 1), "tie": (1, 1), "bad": ("F", "F")}
"""The ranks of the first and of the second answer."""


def arena_page(request: Request, visitor: Lead) -> WebResponse:
    return show_arena(studio_of(request), visitor)


def show_arena(site: Studio, visitor: Visitor, problem: str = "", written: str = "") -> WebResponse:
    """The two answers that wait for a vote, or the form for the next prompt, and the ratings so far."""
    dialogue, _ = open_dialogue(site, visitor)
    state = dialogue[1] if dialogue else {"messages": [], "waiting": None, "last": None, "pool": []}
    return site.page(
        "arena.html", visitor, status=422 if problem else 200, state=state, problem=problem, written=written,
        models=names_of(site.runs()), handout=waiting(state) if state["waiting"] else None, ratings=ratings_of(site),
        most=MOST_CHARACTERS,
    )  # fmt: skip


def ratings_of(site: Studio) -> list[str]:
    """The lines of `charter ratings` on the votes so far; a line that says why there are none."""
    site.mirror.flush()
    if not (site.project.folder / "judgments.jsonl").exists():
        return ["no vote yet"]
    try:
        return ratings_report(read_votes(site.project.folder, models=True), "models")[1]
    except InputError as error:
        return [str(error)]


async def ask(request: Request, visitor: Lead) -> WebResponse:
    """Two models of the pool, drawn by chance and in an order by chance, answer the prompt."""
    site, form = studio_of(request), request.state.form
    written = form.get("text", "")
    dialogue, _ = open_dialogue(site, visitor)
    if dialogue is not None and dialogue[1]["waiting"] is not None:
        return to("/arena")  # two answers wait for a vote already
    pool = [name for name in names_of(site.runs()) if f"model:{name}" in form]
    try:
        text = text_of(form, "text", MOST_CHARACTERS).strip()
        if not text:
            raise BadAnswer("turn")
        if len(pool) < 2:
            raise InputError("choose at least two models")
        prompt = Prompt(messages=(Message(role="user", content=text),), source="arena")
        chosen = secrets.SystemRandom().sample(pool, 2)
        responses = await candidates(site, prompt, chosen)
    except (BadAnswer, InputError) as error:
        return show_arena(site, visitor, str(error), written)
    except ApiError as error:
        return show_arena(site, visitor, f"The models cannot answer: {error}", written)
    same = responses[0].text == responses[1].text
    label_set = LabelSet(prompt_id=prompt.id, kind="pair", response_ids=tuple(r.id for r in responses))
    turn = {"set": label_set.model_dump(), "prompt": prompt.model_dump(), "shown": site.clock(),
            "responses": [r.model_dump() for r in responses]}  # fmt: skip
    state = {"messages": [], "waiting": None if same else turn, "pool": pool, "last": None}
    with site.store.write() as db:
        if dialogue is None:
            db.execute(t.dialogues.insert().values(rater_id=visitor.rater_id, state=json.dumps(state), open=True))
        else:
            site.store.go_on(db, dialogue[0], json.dumps(dialogue[1]), json.dumps(state))
    if same:
        return show_arena(site, visitor, "Both models gave the same answer, so there is nothing to vote on. Ask again.", written)
    return to("/arena")


async def candidates(site: Studio, prompt: Prompt, models: list[str]) -> list[Response]:
    """One answer of each model. InputError or ApiError where a model cannot answer."""
    seed = secrets.randbits(31)
    messages = [ApiMessage(role=message.role, content=message.content) for message in prompt.messages]
    calls = [
        ChatRequest(model=name, messages=messages, seed=seed, temperature=TEMPERATURE, max_tokens=DEFAULT_TOKENS)
        for name in models
    ]
    return [
        Response(prompt_id=prompt.id, model=name, text=text.replace("\x00", ""), finish_reason=finish,
                 generation=Generation(seed=seed, temperature=TEMPERATURE))
        for name, (text, finish) in zip(models, await answers_of(site, calls), strict=True)
    ]  # fmt: skip


async def vote(request: Request, visitor: Lead, verdict: str = "") -> WebResponse:
    """Store the vote, and name the models."""
    site, form = studio_of(request), request.state.form
    dialogue, _ = open_dialogue(site, visitor)
    if dialogue is None or dialogue[1]["waiting"] is None or dialogue[1]["waiting"]["set"]["id"] != form.get("set_id"):
        return to("/arena")
    key, state = dialogue
    if (ranks := VERDICTS.get(verdict)) is None:
        return show_arena(site, visitor, "Choose one of the four verdicts.")
    handout, before = waiting(state), json.dumps(state)
    answer = RaterAnswer(dict(zip(handout.order, ranks, strict=True)))
    by_id = {response.id: response.model for response in handout.responses}
    last: dict[str, Any] = {"models": [by_id[each] for each in handout.order]}
    after = json.dumps(state | {"waiting": None, "last": last})
    site.store.vote_on_turn(visitor.rater_id, handout, answer, site.clock(), instructions_hash=visitor.read, dialogue=key,
                            before=before, after=after)  # fmt: skip
    site.changed()
    return to("/arena")


ROUTES: tuple[Page, ...] = (("/arena", "GET", arena_page), ("/arena/ask", "POST", ask), ("/arena/vote", "POST", vote))
