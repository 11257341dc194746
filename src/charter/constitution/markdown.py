"""Constitutions in Markdown: OpenAI's Model Spec, and any text in which a heading is a principle.

The Model Spec (CC0) writes a section as `## Title {#id authority=user}`. Worked examples stand in fenced blocks of turns, with
GOOD and BAD answers in a `<comparison>`; a footnote `[^abcd]` names the file `examples/abcd.md`, in which prompts stand in the
same form.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from charter.constitution.constitution import AUTHORITIES, Answer, Example
from charter.constitution.published import Gathered, counts_of, of_sentence, slug
from charter.errors import InputError
from charter.records import Message
from charter.run.yaml_files import decode_utf8, read_bytes

HEADING = re.compile(r"^(#{1,6})[ \t]+(.+)$", re.MULTILINE)
PART_READ = "section of which models read the first sentences alone, the rest kept in wording"
ATTRIBUTES = re.compile(r"\s*\{#([^\s}]+)([^}]*)\}$")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
EXAMPLE = re.compile(r"^\*\*Example\*\*:?[ \t]*(.*)$")
FOOTNOTE = re.compile(r"\[\^([\w-]+)\]")
LINK = re.compile(r"\[([^\[\]]*)\]\(#?([^()\s]*)\)")
COMPARISON = re.compile(r"^<comparison>[ \t]*\n(.*?)^</comparison>[ \t]*$", re.MULTILINE | re.DOTALL)
TURN = re.compile(
    r"^<(?P<role>[a-z_]+)(?P<attributes>(?:\s[^>\n]*)?)>[ \t]*(?:<!--(?P<note>.*?)-->)?(?P<text>.*?)</(?P=role)>[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"\s*(GOOD|BAD)\b[:,\s]*(.*)", re.DOTALL)
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}  # fmt: skip
NO_PROSE = re.compile(r"\s{4}|!!!|\||>|\[\^|[*+-]\s|\d+[.)]\s|```|~~~|<")  # how a paragraph begins that states no principle
# A point of a list, with the indented lines below it.
POINT = re.compile(r"^[ \t]*(?:[*+-]|\d+[.)])[ \t]+(\S.*(?:\n[ \t]+(?![*+-][ \t]|\d+[.)][ \t])\S.*)*)", re.MULTILINE)
BLOCK = 20_000  # characters of a worked example; the search for turns is slow in a long block without them
STATEMENT = 600  # characters of a principle that a judge reads: the title and the first sentences below it


@dataclass(frozen=True)
class Piece:
    """A line, or a whole fenced block, whose content is ``inside``."""

    text: str
    line: int
    inside: str | None = None


@dataclass
class Section:
    """A heading and the pieces below it, up to the next. ``parent``: whether a deeper heading stands under it."""

    level: int
    title: str = ""
    anchor: str | None = None
    authority: str | None = None
    parent: bool = False
    pieces: list[Piece] = field(default_factory=list)
    wording: str = ""
    examples: list[Example] = field(default_factory=list)


def is_markdown(text: str, *, plain_list: bool = False) -> bool:
    """Whether a text has a heading; a list of principles, in which a line with # is a comment, has two at least."""
    return len(HEADING.findall(text)) > plain_list


def gather_markdown(text: str, path: Path) -> Gathered:
    """The principles of a document. With an authority in any heading it is a Model Spec: every section with an authority or an
    example is a principle. Otherwise every heading with a text of its own, or with none below it, is a principle, and its order
    is the priority. InputError for an unknown authority or a block that does not end, with the line."""
    sections = outline(text, path)
    spec = any(section.authority for section in sections)
    gathered = Gathered("Model Spec" if spec else "Markdown with headings")
    for section in sections:
        read_section(section, path, gathered)
    sections = without_title(sections, gathered)
    titles = {section.anchor: section.title for section in sections if section.anchor}
    taken: set[str] = set()
    for number, section in enumerate(sections, start=1):
        if spec and not (section.authority or section.examples):
            gathered.left_out[f"section without authority and examples: {section.title}"] += 1
        elif not spec and section.parent and not (section.wording or section.examples):
            gathered.left_out[f"heading without text of its own: {section.title}"] += 1
        else:
            name = id_of(section, taken, f"section-{number:02}")
            rank = {"authority": section.authority} if spec else {"priority": len(gathered.rows) + 1}
            more = {"examples": tuple(section.examples), "wording": section.wording}
            statement, unread = statement_of(section, titles)
            gathered.left_out[f"rule of a list beyond {STATEMENT} characters, kept in wording"] += unread
            gathered.left_out[PART_READ] += not spec and not unread and goes_beyond(section, statement, titles)
            gathered.rows.append(of_sentence(name, statement, section.title) | more | rank)
            gathered.counts += counts_of(section.examples)
    gathered.counts["sections"] = len(gathered.rows)
    return gathered


def pieces_of(text: str, path: Path) -> Iterator[Piece]:
    """The lines of a text, fenced blocks as one. InputError where a block does not end."""
    block: list[str] = []
    fence, begun = "", 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        mark = FENCE.match(line)
        if not fence and not mark:
            yield Piece(line, number)
        elif not fence and mark:
            fence, begun, block = mark[1], number, [line]
        else:
            block.append(line)
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                yield Piece("\n".join(block), begun, "\n".join(block[1:-1]))
                fence = ""
    if fence:
        raise InputError(f"the block does not end; close it with {fence}", file=path, line=begun)


def outline(text: str, path: Path) -> list[Section]:
    """The sections of a document, the first without a level: what stands before the first heading."""
    sections = [Section(0)]
    for piece in pieces_of(text, path):
        heading = HEADING.match(piece.text) if piece.inside is None else None
        if heading is None:
            sections[-1].pieces.append(piece)
            continue
        section = section_of(heading, piece.line, path)
        # Only the section right before can gain a first child here; those above it have one already.
        sections[-1].parent = 0 < sections[-1].level < section.level
        sections.append(section)
    return sections


def section_of(heading: re.Match[str], line: int, path: Path) -> Section:
    """The section that a heading opens. InputError for an unknown authority."""
    title, anchor, authority = re.sub(r" #+$", "", heading[2].strip()).strip(), None, None
    if attributes := ATTRIBUTES.search(title):
        title, anchor = title[: attributes.start()], attributes[1]
        if written := re.search(r"\bauthority=[\"']?([^\s\"'}]*)", attributes[2]):
            authority = written[1]
            if authority not in AUTHORITIES:
                raise InputError(f"unknown authority {authority!r}; use {', '.join(AUTHORITIES)}", file=path, line=line)
    return Section(len(heading[1]), plain(title, {}), anchor, authority)


def read_section(section: Section, path: Path, gathered: Gathered) -> None:
    """Set wording and examples of a section, those in the files of its footnotes included."""
    section.wording, section.examples = wording_and_examples(section.pieces, gathered.left_out)
    for note in dict.fromkeys(FOOTNOTE.findall(section.wording)):
        file = path.parent / "examples" / f"{note}.md"
        if not file.is_file():
            gathered.left_out["footnote without its file examples/ID.md"] += 1
            continue
        _, more = wording_and_examples(pieces_of(decode_utf8(read_bytes(file), file), file), gathered.left_out)
        gathered.counts["example files"] += 1
        section.examples += more


def wording_and_examples(pieces: Iterator[Piece] | list[Piece], left_out: Counter[str]) -> tuple[str, list[Example]]:
    """The text without the fenced blocks of turns and their titles, and the examples in these."""
    prose: list[str] = []
    examples: list[Example] = []
    for piece in pieces:
        too_long = piece.inside is not None and len(piece.inside) > BLOCK
        left_out[f"fenced block of more than {BLOCK} characters, kept as text"] += too_long
        if piece.inside is None or too_long or not TURN.search(piece.inside):
            prose.append(piece.text)
            continue
        while prose and not prose[-1].strip():
            prose.pop()
        named = EXAMPLE.match(prose[-1].strip()) if prose else None
        if named:
            prose.pop()
        examples += examples_of(piece.inside, named[1].strip() if named else "", left_out)
    return "\n".join(prose).strip(), examples


def examples_of(block: str, title: str, left_out: Counter[str]) -> list[Example]:
    """The examples of one block of turns: one for each comparison, after the turns before it and the first good answer of an
    earlier comparison; and the prompt that the last turns leave open. A turn of the assistant right before a comparison begins
    each of its answers."""
    examples: list[Example] = []
    turns: list[Message] = []
    parts = COMPARISON.split(block)
    for number, part in enumerate(parts):
        matches = list(TURN.finditer(part))
        left_out["text outside the turns of an example"] += bool(TURN.sub("", part).strip())
        if any(match["role"] not in ROLES or "recipient=" in match["attributes"] for match in matches):
            left_out["example with tools or an unknown role"] += 1
            return examples
        if number % 2 == 0:
            for match in matches:
                turns = with_turn(turns, match)
            continue
        begun = turns.pop().content + "\n\n" if turns and turns[-1].role == "assistant" else ""
        answers = marked_answers(matches, begun, left_out)
        if not turns or not (answers["GOOD"] or answers["BAD"]):
            left_out["comparison without a prompt or a marked answer"] += 1
            return examples
        examples.append(Example(title=title, prompt=tuple(turns), good=tuple(answers["GOOD"]), bad=tuple(answers["BAD"])))
        if not answers["GOOD"]:
            left_out["turns after a comparison without a GOOD answer"] += any(TURN.search(later) for later in parts[number + 1 :])
            return examples
        turns = [*turns, Message(role="assistant", content=answers["GOOD"][0].text)]
    if turns and turns[-1].role == "assistant" and len(parts) == 1:
        left_out["answer marked neither GOOD nor BAD"] += 1
        turns.pop()
    if turns and turns[-1].role != "assistant" and turns[-1].content:
        examples.append(Example(title=title, prompt=tuple(turns)))
    return examples


def with_turn(turns: list[Message], match: re.Match[str]) -> list[Message]:
    """The turns and one more. Two of one role become one: a conversation takes turns."""
    role, content = ROLES[match["role"]], html.unescape(match["text"]).strip()
    if turns and turns[-1].role == role:
        return [*turns[:-1], Message(role=role, content=f"{turns[-1].content}\n\n{content}")]
    return [*turns, Message(role=role, content=content)]


def marked_answers(matches: list[re.Match[str]], begun: str, left_out: Counter[str]) -> dict[str, list[Answer]]:
    """The answers of a comparison by their mark, each after the words with which the assistant began."""
    answers: dict[str, list[Answer]] = {"GOOD": [], "BAD": []}
    for match in matches:
        mark = MARK.match(match["note"] or "")
        text = html.unescape(match["text"]).strip()
        if mark is None or match["role"] != "assistant" or not text:
            left_out["answer marked neither GOOD nor BAD"] += 1
        else:
            answers[mark[1]].append(Answer(text=begun + text, reason=" ".join(mark[2].split())))
    return answers


def without_title(sections: list[Section], gathered: Gathered) -> list[Section]:
    """The sections but for the text before the first heading and the title of the whole document, a heading above all others.
    Their text becomes the description."""
    before, kept = sections[:1], sections[1:]
    if len(kept) > 1 and not kept[0].authority and all(section.level > kept[0].level for section in kept[1:]):
        gathered.title = kept[0].title
        before, kept = sections[:2], sections[2:]
    gathered.description = "\n\n".join(section.wording for section in before if section.wording)
    gathered.left_out["example before the first principle"] += sum(len(section.examples) for section in before)
    return kept


def id_of(section: Section, taken: set[str], otherwise: str) -> str:
    """The id of a section as it is written, where it can be one."""
    anchor = section.anchor
    if anchor and anchor not in taken and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", anchor):
        taken.add(anchor)
        return anchor
    return slug(anchor or section.title, taken, otherwise)


def statement_of(section: Section, titles: Mapping[str, str]) -> tuple[str, int]:
    """What a judge reads of a section: its title, and of the first paragraph the whole sentences that fit. Where that is the
    title alone, the points of its list that fit; and the number of points that do not."""
    paragraphs = (part for part in re.split(r"\n\s*\n", section.wording) if part.strip() and not NO_PROSE.match(part))
    title = statement = closed(section.title)
    for sentence in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", plain(next(paragraphs, ""), titles)):
        if sentence.endswith(":") or len(statement) + len(sentence) >= STATEMENT:
            break
        statement += f" {sentence}" if sentence else ""
    if statement != title:
        return statement, 0
    points = [closed(plain(text, titles)) for text in POINT.findall(section.wording)]
    fitting = 0
    while fitting < len(points) and len(statement) + len(points[fitting]) < STATEMENT:
        statement += f" {points[fitting]}"
        fitting += 1
    return (statement if fitting else section.title), len(points) - fitting


def goes_beyond(section: Section, statement: str, titles: Mapping[str, str]) -> bool:
    """Whether a section has more words than its statement, which no model reads; a line that ends with a colon does not count."""
    wording = re.sub(r"^\s*(?:[-*+]|\d+[.)])\s+|^.*:[ \t]*$", "", section.wording, flags=re.MULTILINE)
    n_read = len(re.findall(r"\w", statement)) - len(re.findall(r"\w", section.title))
    return len(re.findall(r"\w", plain(wording, titles))) > n_read


def closed(text: str) -> str:
    """The text as a sentence."""
    return text if re.search(r"[.!?…;。！？]$", text) else f"{text}."


def plain(text: str, titles: Mapping[str, str]) -> str:
    """The text without the marks of Markdown. A link `[?](#id)` becomes the title of that section."""
    text = LINK.sub(lambda link: f'"{titles.get(link[2], link[2])}"' if link[1] == "?" else link[1], FOOTNOTE.sub("", text))
    text = re.sub(r"\*\*|__|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)|`", "", text)
    return " ".join(text.split())
