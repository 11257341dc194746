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
from charter.web.access import LEADS, WATCHES, Visitor
from charter.web.answers import BadAnswer, text_of
from charter.web.label_app import Page
from charter.web.red_team import open_dialogue, waiting
from charter.web.site import allow, to
from charter.web.store import RaterAnswer
from charter.web.words import PROBLEMS

Lead = Annotated[Visitor, Depends(allow(LEADS))]
Watcher = Annotated[Visitor, Depends(allow(WATCHES))]
MOST_CHARACTERS = 4000  # of a prompt
TEMPERATURE = 1.0
VERDICTS: dict[str, tuple[Rank, Rank]] = {"a": (1, 2), "b": (2, 1), "tie": (1, 1), "bad": ("F", "F")}
"""The ranks of the first and of the second answer."""


def arena_page(request: Request, visitor: Lead) -> WebResponse:
    return show_arena(studio_of(request), visitor)


def show_arena(site: Studio, visitor: Visitor, problem: str = "", written: str = "", status: int = 422) -> WebResponse:
    """The two answers that wait for a vote, or the form for the next prompt; with a problem under that status."""
    dialogue, _ = open_dialogue(site, visitor)
    state = dialogue[1] if dialogue else {"waiting": None, "last": None, "pool": []}
    return site.page(
        "arena.html", visitor, status=status if problem else 200, state=state, problem=problem, written=written,
        models=names_of(site.runs()), handout=waiting(state) if state["waiting"] else None, most=MOST_CHARACTERS,
    )  # fmt: skip


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
        responses = await candidates(site, prompt, secrets.SystemRandom().sample(pool, 2))
    except BadAnswer as error:
        return show_arena(site, visitor, str(error), written)
    except (InputError, ApiError) as error:
        return show_arena(site, visitor, f"Nobody answered: {error}", written)
    if responses[0].text == responses[1].text:
        return show_arena(
            site, visitor, "Both models gave the same answer, so there is nothing to vote on. Ask again.", written, 200
        )
    label_set = LabelSet(prompt_id=prompt.id, kind="pair", response_ids=tuple(response.id for response in responses))
    turn = {"set": label_set.model_dump(), "prompt": prompt.model_dump(), "shown": site.clock(),
            "responses": [response.model_dump() for response in responses]}  # fmt: skip
    state = json.dumps({"waiting": turn, "pool": pool, "last": None})
    with site.store.write() as db:
        if dialogue is None:
            db.execute(t.dialogues.insert().values(rater_id=visitor.rater_id, state=state, open=True))
            stored = True
        else:
            stored = site.store.go_on(db, dialogue[0], json.dumps(dialogue[1]), state)
    return to("/arena") if stored else show_arena(site, visitor, PROBLEMS["elsewhere"], written, 409)


async def candidates(site: Studio, prompt: Prompt, models: list[str]) -> list[Response]:
    """One answer of each model, each with a seed of its own. InputError or ApiError where a model cannot answer."""
    messages = [ApiMessage(role=message.role, content=message.content) for message in prompt.messages]
    calls = [
        ChatRequest(
            model=name, messages=messages, seed=secrets.randbits(31), temperature=TEMPERATURE, max_tokens=DEFAULT_TOKENS
        )
        for name in models
    ]  # fmt: skip
    return [
        Response(prompt_id=prompt.id, model=call.model, text=text.replace("\x00", ""), finish_reason=finish,
                 generation=Generation(seed=call.seed or 0, temperature=TEMPERATURE))
        for call, (text, finish) in zip(calls, await answers_of(site, calls), strict=True)
    ]  # fmt: skip


async def vote(request: Request, visitor: Lead, verdict: str = "") -> WebResponse:
    """Store the vote, and name the models."""
    site, form = studio_of(request), request.state.form
    dialogue, _ = open_dialogue(site, visitor)
    if dialogue is None or dialogue[1]["waiting"] is None or dialogue[1]["waiting"]["set"]["id"] != form.get("set_id"):
        return to("/arena")  # voted on in another tab
    key, state = dialogue
    if (ranks := VERDICTS.get(verdict)) is None:
        return show_arena(site, visitor, "Choose one of the four verdicts.")
    handout = waiting(state)
    answer = RaterAnswer(dict(zip(handout.order, ranks, strict=True)))
    last: dict[str, Any] = {"models": [response.model for response in handout.responses], "verdict": verdict}
    after = json.dumps(state | {"waiting": None, "last": last})
    site.store.vote_on_turn(visitor.rater_id, handout, answer, site.clock(), instructions_hash=visitor.read, dialogue=key,
                            before=json.dumps(state), after=after)  # fmt: skip
    site.changed()
    return to("/arena")


def ratings_page(request: Request, visitor: Watcher) -> WebResponse:
    """The figures of `charter ratings` on the arena's votes, or a line that says why there are none."""
    site = studio_of(request)
    site.mirror.flush()
    folder, head = site.project.folder, "There is no vote yet."
    result: dict[str, Any] | None = None
    if (folder / "judgments.jsonl").exists():
        try:
            result, lines = ratings_report(read_votes(folder, models=True), "models")
            head = lines[0]
        except InputError as error:
            head = str(error)
    return site.page("ratings.html", visitor, result=result, head=head)


ROUTES: tuple[Page, ...] = (
    ("/arena", "GET", arena_page),
    ("/arena/ask", "POST", ask),
    ("/arena/vote", "POST", vote),
    ("/ratings", "GET", ratings_page),
)
