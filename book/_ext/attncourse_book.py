"""How the book looks and loads: prerendered mathematics, and patches of the theme.

Each patch says why it exists; `tests/book/test_structure.py` fails when upstream no longer needs it.
"""

import re
import shutil
from pathlib import Path

from sphinx.util import logging
from sphinxcontrib import katex

from attncourse import __version__

ROOT = Path(__file__).parents[2]
KATEX = ROOT / "node_modules" / "katex" / "dist"
logger = logging.getLogger(__name__)

PATCHES = [  # (why, pattern in a rendered page, replacement)
    (
        "1.5 MB of script on every page, for icons that the theme's web font draws as well",
        r'<script src="[^"]*scripts/fontawesome\.js[^"]*"></script>',
        "",
    ),
    (
        "sphinx-thebe, switched off in `configure`, links a stylesheet all the same",
        r"<link [^>]*sphinx-thebe\.css[^>]*>",
        "",
    ),
    (
        "without scripts the page has no theme, so code has no colours",
        r'(<html [^>]*data-content_root="[^"]*") (?:data-theme="auto")?>',
        r'\1 data-theme="light">',
    ),
    (
        "in dark mode the page flashes white until a deferred script asks for the system's setting",
        r'(dataset\.theme = localStorage\.getItem\("theme"\) \|\|) "auto"',
        r'\1 (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")',
    ),
    (
        "WCAG 2.5.3: the button reads `Search Ctrl+K` but is named `Search`",
        r'(<button class="btn search-button-field[^>]*?) title="Search" aria-label="Search"',
        r"\1",
    ),
    (
        "the sidebar's logo and search stand in no landmark",
        r'<div id="pst-primary-sidebar"',
        r'<div role="region" aria-label="Course" id="pst-primary-sidebar"',
    ),
    (
        "WCAG 4.1.2: the arrow that opens a chapter's pages has no name",
        r">([^<]+)</a><details([^>]*)><summary>",
        r'>\1</a><details\2><summary aria-label="Pages of \1">',
    ),
    (
        "WCAG 2.5.3: what opens a hidden cell reads `Show code cell source` but is named otherwise",
        r'<summary aria-label="Toggle hidden content">',
        "<summary>",
    ),
    (
        "docutils gives the items of a bibliography a role that ARIA has withdrawn",
        r'role="doc-biblioentry"',
        r'role="listitem"',
    ),
]


def mend(html):
    """Apply the theme patches to one rendered page."""
    for _, pattern, replacement in PATCHES:
        html = re.sub(pattern, replacement, html)
    return html


def configure(app, config):
    """Settings that _config.yml cannot express."""
    config.version = config.release = __version__  # a new one makes every page anew
    # One version of KaTeX writes the markup and styles it: sphinxcontrib-katex would use its own, older, script.
    config.katex_js_path = str(KATEX / "katex.min.js")
    config.katex_css_path = "katex/katex.min.css"
    # Its 5 s are too few on a busy machine, and then its server is left running.
    katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0
    # Its Unix socket is there before it listens: "connection refused", on a busy machine. A port it tries again.
    katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
    # Here, not in _config.yml: `html_theme_options` there replaces the ones that Jupyter Book makes (the buttons).
    config.html_theme_options |= {
        "logo": {"text": "attncourse", "alt_text": ""},
        "pygments_light_style": "a11y-high-contrast-light",
        "pygments_dark_style": "a11y-high-contrast-dark",
        "use_fullscreen_button": False,
        "search_bar_text": "Search the course",
        "toc_title": "On this page",
    }
    config.html_context["default_mode"] = "auto"
    # Jupyter Book always loads sphinx-thebe: a script sent twice, a page error, and a CDN's address on every page.
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if not entry.handler.__module__.startswith("sphinx_thebe")]


def prepare(app):
    """Copy KaTeX's stylesheet and fonts into the site, and mend every page as it is written."""
    target = Path(app.outdir, "_static", "katex")
    only_woff2 = shutil.ignore_patterns("*.ttf", "*.woff")
    shutil.copytree(KATEX / "fonts", target / "fonts", dirs_exist_ok=True, ignore=only_woff2)
    shutil.copy(KATEX / "katex.min.css", target)
    render = app.builder.templates.render

    def render_mended(template, context):
        html = mend(render(template, context))
        if 'class="katex-error"' in html:  # KaTeX shows what it cannot set in red, and carries on
            logger.warning("KaTeX cannot set a formula of this page", location=context.get("pagename"))
        return html

    app.builder.templates.render = render_mended


def state_version(app, pagename, templatename, context, doctree):
    """The version below each page, which leads to the changelog."""
    version = f"Version {__version__}"
    if "book/changelog" in app.env.all_docs:
        version = f'<a href="{context["pathto"]("book/changelog")}">{version}</a>'
    context["theme_extra_footer"] = f"{context.get('theme_extra_footer', '')} {version}"


def finish(app, exception):
    """Drop what no page loads."""
    for path in Path(app.outdir, "_static", "scripts").glob("fontawesome*"):
        path.unlink()


def setup(app):
    app.connect("config-inited", configure)
    app.connect("builder-inited", prepare)
    app.connect("html-page-context", state_version)
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
