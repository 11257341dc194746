"""Untrusted text for the page: as it is, or with its Markdown marked.

Everything that a model or a file wrote passes here. A person judges the text that is stored, so formatting adds tags and never
drops a character: the marks of Markdown stay beside the words they format, and an invisible character is shown by its code, such
as ⟨U+200B⟩. Links, images and HTML stay plain characters.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

LONG = 8000  # characters; what is longer is folded, and shown as it is
HEAD = 3000
# Characters that nobody sees, some of which reorder the text around them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)

TAGS = {"a", "p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "hr", "h1", "h2", "h3", "h4", "h5",
        "h6", "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
INSTRUCTIONS_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["image"])

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r" {0,3}#{1,6} ")
TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
# Code, then bold, then italics; a mark opens after a space or a bracket and closes before one, so 2*3*4 stays arithmetic.
SPAN = re.compile(
    r"(?P<code>(?<!`)`[^`]+`(?!`))"
    r"|(?P<strong>(?<![\w*\\])\*\*(?=[^\s*])[^*]*?(?<=[^\s*\\])\*\*(?![\w*]))"
    r"|(?P<em>(?<![\w*\\(])\*(?=[^\s*])[^*]*?(?<=[^\s*\\])\*(?![\w*]))"
)


def with_codes(text: str) -> str:
    """The text with the code of each invisible character in its place, its lines as a browser reads them."""
    return INVISIBLE.sub(lambda match: code_of(match[0]), with_plain_line_ends(text))


def without_codes(text: str, original: str) -> str:
    """A rewrite of :func:`with_codes` of ``original``, with the invisible characters of the original in place of their codes."""
    for character in set(INVISIBLE.findall(original)):
        text = text.replace(code_of(character), character)
    return text


def code_of(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def with_plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown(text: str) -> Markup:
    """The text as HTML, each invisible character as its code with its name."""
    return named_codes(str(escape(with_plain_line_ends(text))))


def named_codes(html: str) -> Markup:
    """HTML with an element in place of each invisible character."""
    return Markup(INVISIBLE.sub(lambda match: (
        f'<abbr title="{unicodedata.name(match[0], "control character").lower()}: an invisible character of the text">'
        f"{code_of(match[0])}</abbr>"
    ), html))  # fmt: skip


@lru_cache(maxsize=4096)
def rendered(text: str) -> Markup:
    """A model's Markdown as HTML that has every character of :func:`shown`, for an element that keeps line ends and spaces."""
    lines, fence = [], ""
    for line in with_plain_line_ends(text).split("\n"):
        opening = FENCE.match(line)
        if fence or opening:
            lines.append(element("code", line))
            if opening and not fence:
                fence = opening[1]
            elif opening and opening[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif HEADING.match(line):
            lines.append(element("strong", line))
        elif TABLE_ROW.match(line):
            lines.append(element("code", line))
        else:
            lines.append(spans(line))
    return named_codes("\n".join(lines))


def spans(line: str) -> str:
    """A line with its code, bold and italic parts inside tags, marks included."""
    parts, end = [], 0
    for match in SPAN.finditer(line):
        parts += [escape(line[end : match.start()]), element(str(match.lastgroup), match[0])]
        end = match.end()
    return "".join([*parts, escape(line[end:])])


def element(tag: str, text: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>"


@lru_cache(maxsize=64)
def instructions_html(text: str) -> Markup:
    """The project's own Markdown as HTML; links stay links, and open without saying where from."""
    html = INSTRUCTIONS_MARKDOWN.render(with_codes(text))
    return Markup(
        nh3.clean(html, tags=TAGS, attributes={"a": {"href"}, "ol": {"start"}}, url_schemes={"https", "http"},
                  link_rel="noopener noreferrer")
    )  # fmt: skip
