"""The report page in a real browser: it fits, and axe finds nothing serious with every part unfolded."""

import pytest

from test_label_browser import browser, pytestmark, serious  # noqa: F401 - the fixture, and the skip without a browser


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_report_fits_and_passes_axe(finished_run, browser, width, scheme):  # noqa: F811
    # The page forbids all scripts, axe's too.
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto((finished_run / "report.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1200:  # a reader sees p and n without scrolling sideways, and every word
        parts = ".wide[aria-label=Contrasts], td small.warn"
        assert page.eval_on_selector_all(parts, "found => found.filter(one => one.scrollWidth > one.clientWidth).length") == 0
    assert serious(page) == []
    context.close()
