"""The documentation site: `make docs` builds it from the pages as they are and the docstrings, into build/docs."""

import re

project = "Charter"
author = "the Charter authors"
copyright = "the Charter authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# The source folder is the root of the repository, so a link between README, docs and results works here as it does in a checkout.
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md", "results/*.md"]
exclude_patterns = [".*", "build", "runs", "src", "tests", "**/node_modules"]

myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "Charter"
html_extra_path = ["site"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
pygments_style = "friendly"

MARKUP = re.compile(r"(``.+?``|(?<!\w)\*\w+\*(?!\w))", re.DOTALL)
LINKED_PAGE = re.compile(r"\]\(([^)#:]+)\.md\)")


def add_navigation(app, docname, source):
    """Make the side bar from the index: a part for each section, with the section's pages in their order."""
    if docname != root_doc:
        return
    for section in source[0].split("\n## ")[1:]:
        pages = dict.fromkeys(LINKED_PAGE.findall(section))
        if pages:
            source[0] += "\n```{toctree}\n:hidden:\n:caption: " + section.splitlines()[0] + "\n\n" + "\n".join(pages) + "\n```\n"


def escape_docstring(app, what, name, obj, options, lines):
    """Docstrings are plain text with ``code`` and *stress* in them: any other *, | or _ belongs to a formula."""
    parts = MARKUP.split("\n".join(lines))
    parts[::2] = [re.sub(r"([*|`]|_\b)", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    """Connect both to the build."""
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", escape_docstring)
