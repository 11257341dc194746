"""Red-team dialogues: the person writes, two candidates answer each turn, the chosen one continues (Bai et al. 2022, 2.1).

Both candidates are shown at once, when both are there, so that speed does not tell one model from the other. Each turn is a
set of its own with its vote; what the person says of the whole dialogue goes to ``dialogues.jsonl``, in the fields of the
red-team attempts of anthropics/hh-rlhf.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, Request
from starlette.responses import Response as WebResponse

from charter.errors import InputError
from charter.records import LabelSet, Message, Prompt, Response
from charter.run.files import write_text
from charter.web import tables as t
from charter.web.access import LABELS, RequestRefused, Visitor
from charter.web.answers import BadAnswer, read_answer, text_of
from charter.web.candidates import Busy
from charter.web.site import Site, allow, site_of, to
from charter.web.store import Handout
from charter.web.words import PROBLEMS, RATINGS

Labeler = Annotated[Visitor, Depends(allow(LABELS))]
MAX_TURN = 4000  # characters
TAG = "red_team"  # of every dialogue


async def dialogue_page(request: Request, visitor: Labeler) -> WebResponse:
    site = site_of(request)
    if visitor.read != site.instructions()[0]:
        return to("/instructions")
    if TAG in visitor.opt_out:
        return site.page("left_out.html", visitor, tags=site.settings.warnings.get(TAG, TAG), test=False)
    return show_dialogue(site, visitor)


def show_dialogue(
    site: Site, visitor: Visitor, problem: str = "", written: str = "", status: int = 422, form: dict[str, str] | None = None
) -> WebResponse:
    """The dialogue as it stands; with a problem under that status and with the text that was not sent."""
    dialogue, n_done = open_dialogue(site, visitor)
    state = dialogue[1] if dialogue else None
    handout = waiting(state) if state and state["waiting"] else None
    return site.page(
        "red_team.html", visitor, status=status if problem else 200, state=state, handout=handout, problem=problem,
        written=written, warnings=site.warnings((TAG,)), n_done=n_done, left=site.settings.redteam.dialogues - n_done,
        ratings=RATINGS, draft=form or {}, question=site.question("redteam", site.settings.asked_direction),
        turns=0 if state is None else sum(m["role"] == "assistant" for m in state["messages"]),
    )  # fmt: skip


def open_dialogue(site: Site, visitor: Visitor) -> tuple[tuple[int, dict[str, Any]] | None, int]:
    """This person's unfinished dialogue as (id, state), and how many they finished."""
    with site.store.read() as db:
        rows = db.execute(
            sa.select(t.dialogues.c.id, t.dialogues.c.state, t.dialogues.c.open).where(t.dialogues.c.rater_id == visitor.rater_id)
        ).all()
    unfinished = [(row.id, json.loads(row.state)) for row in rows if row.open]
    return (unfinished[0] if unfinished else None), sum(not row.open for row in rows)


def waiting(state: dict[str, Any]) -> Handout:
    """The two candidates that wait for a choice."""
    turn = state["waiting"]
    label_set = LabelSet.model_validate(turn["set"])
    prompt = Prompt.model_validate(turn["prompt"])
    return Handout(label_set, prompt, tuple(Response.model_validate(r) for r in turn["responses"]), turn["shown"])


async def say(request: Request, visitor: Labeler) -> WebResponse:
    """The person's turn: two candidates are sampled and wait for the choice."""
    site = site_of(request)
    if TAG in visitor.opt_out:
        return to("/redteam")
    written = request.state.form.get("text", "")
    dialogue, n_done = open_dialogue(site, visitor)
    settings = site.settings.redteam
    try:
        text = text_of(request.state.form, "text", MAX_TURN).strip()
        if not text:
            raise BadAnswer("turn")
        if dialogue is None and n_done >= settings.dialogues:
            raise BadAnswer("dialogues")
    except BadAnswer as error:
        return show_dialogue(site, visitor, str(error), written)
    if dialogue is None:
        fresh: dict[str, Any] = {"messages": [], "waiting": None, "started": site.clock()}
        with site.store.write() as db:
            row = db.execute(t.dialogues.insert().values(rater_id=visitor.rater_id, state=json.dumps(fresh), open=True))
        dialogue = int((row.inserted_primary_key or (0,))[0]), fresh
    key, state = dialogue
    before = json.dumps(state)
    if state["waiting"] is not None or sum(m["role"] == "assistant" for m in state["messages"]) >= settings.turns:
        return to("/redteam")
    messages = [Message.model_validate(m) for m in state["messages"]] + [Message(role="user", content=text)]
    prompt = Prompt(messages=tuple(messages), source="red team", tags=(TAG,))
    try:
        site.generation.check(visitor.session)
        responses = await site.candidates.write(prompt, key)
    except RequestRefused as error:  # too fast
        return show_dialogue(site, visitor, str(error), written, error.status)
    except Busy:
        return show_dialogue(site, visitor, PROBLEMS["busy"], written, 503)
    except InputError as error:
        return show_dialogue(site, visitor, PROBLEMS["full"].format(words=error), written)
    state["messages"] = [m.model_dump() for m in messages]
    if responses[0].text == responses[1].text:  # nothing to choose between
        state["messages"].append({"role": "assistant", "content": responses[0].text})
    else:
        label_set = LabelSet(prompt_id=prompt.id, kind="redteam", response_ids=tuple(r.id for r in responses),
                       direction=site.settings.asked_direction, tags=(TAG,))  # fmt: skip
        state["waiting"] = {"set": label_set.model_dump(), "prompt": prompt.model_dump(), "shown": site.clock(),
                            "responses": [r.model_dump() for r in responses]}  # fmt: skip
    with site.store.write() as db:
        stored = site.store.go_on(db, key, before, json.dumps(state))
    if not stored:
        return show_dialogue(site, visitor, PROBLEMS["elsewhere"], written, 409)
    return to("/redteam")


async def choose(request: Request, visitor: Labeler) -> WebResponse:
    """The vote on the two candidates; the dialogue continues from the chosen one."""
    site, form = site_of(request), request.state.form
    dialogue, _ = open_dialogue(site, visitor)
    if dialogue is None or dialogue[1]["waiting"] is None or dialogue[1]["waiting"]["set"]["id"] != form.get("set_id"):
        return to("/redteam")
    key, state = dialogue
    before = json.dumps(state)
    handout = waiting(state)
    try:
        answer = read_answer(form, handout, site.settings, site.project.principles)
    except BadAnswer as error:
        return show_dialogue(site, visitor, str(error), form=form)
    ranks = answer.ranks
    first, second = handout.responses
    goes_on = second if ranks[first.id] == "F" or (ranks[second.id] == 1 and ranks[first.id] != 1) else first
    state["messages"].append({"role": "assistant", "content": goes_on.text})
    state["waiting"] = None
    site.store.vote_on_turn(
        visitor.rater_id, handout, answer, site.clock(), instructions_hash=visitor.read, dialogue=key, before=before,
        after=json.dumps(state),
    )  # fmt: skip
    site.changed()
    return to("/redteam")


async def end(request: Request, visitor: Labeler) -> WebResponse:
    """The person ends the dialogue and says what it was about and how far it got."""
    site, form = site_of(request), request.state.form
    dialogue, _ = open_dialogue(site, visitor)
    if dialogue is None:
        return to("/redteam")
    key, state = dialogue
    before = json.dumps(state)
    try:
        if form.get("rating") not in ("0", "1", "2", "3", "4"):
            raise BadAnswer("rating")
        about = text_of(form, "about", 500).strip()
    except BadAnswer as error:
        return show_dialogue(site, visitor, str(error), form=form)
    tags = [tag.strip() for tag in form.get("tags", "").split(",") if tag.strip()][:10]
    state |= {"rating": int(form["rating"]), "about": about, "tags": [tag[:50] for tag in tags], "waiting": None}
    with site.store.write() as db:
        site.store.go_on(db, key, before, json.dumps(state), is_open=False)
    write_dialogues(site)
    return to("/redteam")


def write_dialogues(site: Site) -> None:
    """Add the finished dialogues that the file does not have, one JSON object a line; those of a folder whose database was lost
    stay where they are. Done at every start too: a server may have been killed before it."""
    with site.store.read() as db:
        rows = db.execute(sa.select(t.dialogues).where(~t.dialogues.c.open).order_by(t.dialogues.c.id)).all()
    lines = []
    for row in rows:
        state = json.loads(row.state)
        names = {"user": "Human", "assistant": "Assistant"}
        transcript = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in state["messages"])
        record = {"transcript": transcript, "rating": state["rating"], "task_description": state["about"],
                  "red_team_member_id": row.rater_id, "tags": state["tags"]}  # fmt: skip
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    file = site.project.folder / "dialogues.jsonl"
    kept = file.read_text(encoding="utf-8") if file.exists() else ""
    # A dialogue may have U+2028 and the like, at which str.splitlines would cut its line in two.
    known = set(kept.split("\n"))
    if new := [line for line in lines if line.removesuffix("\n") not in known]:
        write_text(file, "".join([kept, "" if kept.endswith("\n") or not kept else "\n", *new]))


ROUTES = (
    ("/redteam", "GET", dialogue_page),
    ("/redteam/say", "POST", say),
    ("/redteam/choose", "POST", choose),
    ("/redteam/end", "POST", end),
)
