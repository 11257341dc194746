"""Untrusted text for the page: as it is, or as Markdown that can do nothing but format.

Everything a model or a file says passes here. Links, images and HTML stay the characters they are: a label page opens no
address that a model wrote.
"""

from __future__ import annotations

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

LONG = 8000  # characters; what is longer is folded, and shown as it is
HEAD = 3000
# Characters that reorder the text around them, or hide in it: an answer must read on the page as it is stored.
HIDDEN = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

TAGS = {"p", "br", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "hr", "h1", "h2", "h3", "h4", "h5", "h6",
        "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
model_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
model_markdown.disable(["link", "image", "autolink", "reference"])
own_markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["image"])


def visible(text: str) -> str:
    """The text without characters that reorder or hide; other control characters show as ␀ to ␟."""
    text = HIDDEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))  # as a browser reads lines
    return CONTROL.sub(lambda found: chr(0x2400 + ord(found[0])) if ord(found[0]) < 32 else "\ufffd", text)


@lru_cache(maxsize=4096)
def rendered(text: str) -> Markup:
    """A model's Markdown as HTML: formatting only, headings below those of the page."""
    html = model_markdown.render(visible(text))
    html = re.sub(r"(</?h)([1-6])>", lambda found: f"{found[1]}{min(6, int(found[2]) + 3)}>", html)
    return Markup(nh3.clean(html, tags=TAGS, attributes={"ol": {"start"}}))


@lru_cache(maxsize=64)
def instructions_html(text: str) -> Markup:
    """The project's own Markdown as HTML; links stay links, and open without saying where from."""
    html = own_markdown.render(visible(text))
    return Markup(
        nh3.clean(html, tags=TAGS | {"a"}, attributes={"a": {"href"}, "ol": {"start"}}, url_schemes={"https", "http"},
                  link_rel="noopener noreferrer")
    )  # fmt: skip
