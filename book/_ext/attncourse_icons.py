"""The theme's icon font, cut down to the icons that the book shows: 1,400 others weigh 150 kB on every page."""

import re
from pathlib import Path

from fontTools import subset
from pydata_sphinx_theme import __file__ as theme

SOURCE = Path(theme).parent / "theme" / "pydata_sphinx_theme" / "static" / "vendor" / "fontawesome" / "webfonts"
NAMED = re.compile(
    r'([^{}]*\.fa-[^{}]*)\{content:"(\\?)([^"]+)"\}'
)  # .fa-bars:before,.fa-navicon:before{content:"\f0c9"}


def icons_shown(texts, stylesheets):
    """Code points of the icons that pages and scripts name, and of those that stylesheets put somewhere themselves."""
    names = {name for text in texts for name in re.findall(r"\bfa-[a-z0-9-]+", text)}
    points = set()
    for sheet in stylesheets:
        for selectors, escaped, character in NAMED.findall(sheet):
            if names & set(re.findall(r"\bfa-[a-z0-9-]+", selectors)):
                points.add(int(character, 16) if escaped else ord(character))
        rest = NAMED.sub("", sheet)
        points |= {int(code, 16) for code in re.findall(r"\\([ef][0-9a-f]{3})\b", rest)}
        points |= {ord(character) for character in re.findall("[\ue000-\uf8ff]", rest)}
    return points


def shrink(app, exception):
    """Replace each web font of the built site by one that holds these icons only. A font that has none is left out."""
    site = Path(app.outdir)
    if exception or not (site / "_static" / "vendor").exists():
        return
    pages = [path.read_text() for path in (*site.rglob("*.html"), *(site / "_static").rglob("*.js"))]
    points = icons_shown(pages, [path.read_text() for path in (site / "_static").rglob("*.css")])
    for font in (site / "_static" / "vendor" / "fontawesome" / "webfonts").glob("*.woff2"):
        options = subset.Options(flavor="woff2", ignore_missing_unicodes=True)
        with subset.load_font(SOURCE / font.name, options) as whole:  # a build may find its own work of last time
            small = subset.Subsetter(options)
            small.populate(unicodes=points)
            small.subset(whole)
            subset.save_font(whole, font, options)


def setup(app):
    app.connect("build-finished", shrink)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
