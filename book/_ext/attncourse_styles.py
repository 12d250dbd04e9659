"""One stylesheet in place of twelve, without rules that no page uses; scripts and pictures that do not hold up text.

The theme sends 400 kB of style with every page, nine tenths of it for things that are not there. On a phone that is a
second of empty screen. A rule is left out only if it asks for a class that stands in no page and in no script.
"""

import base64
import hashlib
import os
import re
from itertools import pairwise
from pathlib import Path

import tinycss2

SHEET = "_static/book.css"
LINK = re.compile(r'<link\b[^>]*\brel="stylesheet"[^>]*>\s*')
PICTURE = re.compile(r"data:image/png;base64,((?:[A-Za-z0-9+/=\s]|%0A){800,})(?=\")")
WORD = re.compile(r"[A-Za-z_][\w-]*")
NESTED = {"media", "supports"}  # rules inside these are looked at one by one; any other at-rule is kept whole
UNKEYED = {"import", "charset"}  # done with, once the sheets are one


class Names:
    """What could be the name of a class: each word of the pages and scripts.

    A word of a script that ends in a hyphen is the beginning of names that it puts together.
    """

    def __init__(self, pages, scripts):
        self.words = {word for text in (*pages, *scripts) for word in WORD.findall(text)}
        self.beginnings = tuple({word for text in scripts for word in WORD.findall(text) if word.endswith("-")})

    def __contains__(self, name):
        return name in self.words or name.startswith(self.beginnings)


def used(selector, names):
    """Can this selector match? Only classes outside parentheses are asked for, since `:not(.a)` matches without `a`."""
    return all(after.value in names for token, after in pairwise(selector) if token == "." and after.type == "ident")


def pruned(rules, names):
    """A stylesheet's rules as text, without those that cannot match."""
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors, start = [], 0
            commas = [i for i, token in enumerate(rule.prelude) if token == ","]
            for end in (*commas, len(rule.prelude)):
                selectors.append(rule.prelude[start:end])
                start = end + 1
            chosen = [tinycss2.serialize(one).strip() for one in selectors if used(one, names)]
            if chosen:
                kept.append(f"{','.join(chosen)}{{{tinycss2.serialize(rule.content).strip()}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in NESTED:
            inside = pruned(tinycss2.parse_rule_list(rule.content, True, True), names)
            if inside:
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword not in UNKEYED:
            kept.append(rule.serialize())
    return "\n".join(kept)


def read(path, target):
    """A stylesheet with those that it imports, its addresses made relative to `target`."""

    def address(found):
        name = found[1].strip("\"'")
        if name.startswith(("data:", "#")) or ":" in name:
            return found[0]
        return f"url({Path(os.path.relpath(path.parent / name, target.parent)).as_posix()})"

    text = path.read_text("utf-8")
    imported = [read(path.parent / name, target) for name in re.findall(r'@import\s+(?:url\()?"([^"]+)"', text)]
    return "\n".join([*imported, re.sub(r"url\(([^)]*)\)", address, text)])


def defer(html):
    """Let scripts wait until the page is read: they run in the same order, before the page says that it is loaded."""
    html = re.sub(r'<script (?![^>]*\b(?:defer|async|type)\b)(?=[^>]*\bsrc=")', "<script defer ", html)
    # What was run between them has to wait, too.
    return re.sub(r"<script>(?=DOCUMENTATION_OPTIONS\.)", '<script type="module">', html)


def outsource(html, site):
    """The page with its larger pictures in files of their own, which do not hold up the text as inline ones do."""
    root = re.search(r'data-content_root="([^"]*)"', html)[1]

    def file(found):
        content = base64.b64decode(re.sub(r"%0A|\s", "", found[1]))
        name = f"_static/pictures/{hashlib.sha256(content).hexdigest()[:16]}.png"
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_bytes(content)
        return root + name

    return PICTURE.sub(file, html)


def sheets_of(html):
    """The stylesheets that a page links, in order."""
    links = (re.search(r'\bhref="([^"?]*)', link)[1] for link in LINK.findall(html))
    return [re.sub(r"^(\.\./)*", "", link) for link in links]


def link_one(html, version):
    """The page with one link, where its first one was."""
    root = re.search(r'data-content_root="([^"]*)"', html)[1]
    first = LINK.search(html).start()
    return f'{html[:first]}<link rel="stylesheet" href="{root}{SHEET}?v={version}">\n{LINK.sub("", html[first:])}'


def bundle(app, exception):
    """Write the stylesheet, and link it from every page."""
    site = Path(app.outdir)
    if exception or app.builder.format != "html":
        return
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html") if "_static" not in path.parts}
    pages = {path: html for path, html in pages.items() if "data-content_root" in html}
    lists = {tuple(sheets_of(html)) for html in pages.values()} - {(SHEET,)}
    if not lists:  # no page was written
        return
    if len(lists) > 1:
        raise ValueError(f"pages link different stylesheets, so that they cannot share one: {sorted(lists)}")
    scripts = [path.read_text("utf-8") for path in site.rglob("*.js") if path.name != "searchindex.js"]
    names, target = Names(pages.values(), scripts), site / SHEET
    text = "\n".join(
        pruned(tinycss2.parse_stylesheet(read(site / name, target), True, True), names) for name in lists.pop()
    )
    target.write_text(text, "utf-8")
    version = hashlib.sha256(text.encode()).hexdigest()[:8]
    for path, html in pages.items():
        path.write_text(defer(outsource(link_one(html, version), site)), "utf-8")


def setup(app):
    app.connect("build-finished", bundle, priority=900)  # after the theme, which writes its colours of code then
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
