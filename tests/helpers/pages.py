"""Reading a page that a report wrote."""

import json
import re


def loads(page):
    """What a browser would fetch: sources and links of the markup, outside of scripts."""
    markup = re.sub(r"<script.*?</script>", "<script>", page, flags=re.S)
    return re.findall(r"""(?:src|href|action|data)\s*=\s*["'](?!#)[^"']*|url\([^)]*\)|@import[^;]*""", markup)


def data_of(page):
    """The traces of the page's figures, in order."""
    calls = re.finditer(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*", page)
    return [json.JSONDecoder().raw_decode(page, call.end())[0] for call in calls]


def page_of(path):
    """A page's HTML without plotly's own script."""
    from plotly.offline import get_plotlyjs

    page = path.read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) <= 1
    return page.replace(get_plotlyjs(), "")
