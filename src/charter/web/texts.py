"""Untrusted text for the page: as it is, or with its Markdown marked.

Everything that a model or a file wrote passes here. A person judges the text that is stored, so formatting adds tags and never
drops a character: the marks of Markdown stay beside the words they format. Links, images and HTML stay plain characters.
"""

from __future__ import annotations

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

LONG = 8000  # characters; what is longer is folded, and shown as it is
HEAD = 3000
# Characters that reorder the text around them, or hide in it: an answer must read on the page as it is stored.
HIDDEN = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

TAGS = {"a", "p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "hr", "h1", "h2", "h3", "h4", "h5",
        "h6", "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
own_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["image"])

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r" {0,3}#{1,6} ")
TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
# Code, then bold, then italics; a mark opens after a space or a bracket and closes before one, so 2*3*4 stays arithmetic.
SPAN = re.compile(
    r"(?P<code>(?<!`)`[^`]+`(?!`))"
    r"|(?P<strong>(?<![\w*\\])\*\*(?=[^\s*])[^*]*?(?<=[^\s*\\])\*\*(?![\w*]))"
    r"|(?P<em>(?<![\w*\\(])\*(?=[^\s*])[^*]*?(?<=[^\s*\\])\*(?![\w*]))"
)


def cleaned(text: str) -> str:
    """The text without characters that reorder or hide; other control characters show as ␀ to ␟."""
    text = HIDDEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))  # as a browser reads lines
    return CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])) if ord(match[0]) < 32 else "\ufffd", text)


@lru_cache(maxsize=4096)
def rendered(text: str) -> Markup:
    """A model's Markdown as HTML that has every character of :func:`cleaned`, for an element that keeps line ends and spaces."""
    lines, fence = [], ""
    for line in cleaned(text).split("\n"):
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
    return Markup("\n".join(lines))


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
    html = own_markdown.render(cleaned(text))
    return Markup(
        nh3.clean(html, tags=TAGS, attributes={"a": {"href"}, "ol": {"start"}}, url_schemes={"https", "http"},
                  link_rel="noopener noreferrer")
    )  # fmt: skip
