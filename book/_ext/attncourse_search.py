"""What readers type into the search, and the page that comes first then: Sphinx puts index entries before all else.

A page is found by its title, the name of its file and other words, a chapter also by the terms and abbreviations of the
glossary whose entry links it last. How other results are weighed, and where the focus goes: `book/_static/search.js`.
"""

import re
from pathlib import Path

GLOSSARY = Path(__file__).parents[1] / "glossary.md"
ENTRY = re.compile(r"^## ([^(\n]+?)(?: \(([^)\n]+)\))?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)

# What else a page is called. A query of half a name's length or more finds the name.
NAMES = {
    "book/how_to_use": "install, installation, set up, setup, exercises, JupyterLab, Colab, offline",
    "book/prerequisites": "requirements",
    "book/glossary": "terms, definitions, abbreviations",
    "book/map": "history, timeline",
    "book/notation": "symbols, letters",
    "book/bibliography": "references, papers, literature",
    "book/teaching/guide": "grading, gradebook, assignments, teaching",
    "notebooks/00_start": "softmax, shapes, masks, masking",
    "notebooks/01_bahdanau": "attention, Bahdanau attention, concat attention, soft attention",
    "notebooks/02_luong": "Luong attention, multiplicative attention, dot-product attention, hard attention",
    "notebooks/03_self_attention": "scaled dot-product, transformer",
    "notebooks/04_cross_attention": "encoder-decoder attention",
    "notebooks/05_causal": "masked attention, look-ahead mask, autoregressive",
    "notebooks/06_multi_head": "multihead, MHA, heads",
    "notebooks/07_positions": "positional encoding, positional encodings, positional embedding, position encoding, "
    "position embedding, rotary, rotary embedding, sinusoidal",
    "notebooks/08_sliding_window": "window, windowed attention, local attention, SWA",
    "notebooks/10_linear": "linear transformer, Performer",
    "notebooks/11_kv_cache": "cache, caching, KV caching, inference",
    "notebooks/14_mla": "latent attention, DeepSeek",
    "notebooks/15_execution": "FlashAttention, Flash attention, PagedAttention, paged attention",
    "notebooks/16_choosing": "comparison",
    "notebooks/17_bugs": "debugging, pitfalls",
}


def entries(titles, glossary):
    """(page, name) for each name of a page. Of several pages with one name, that of the first source has it.

    titles: those of all pages, by page.
    """
    found = {name.lower(): page for page, names in NAMES.items() for name in names.split(", ")}
    for page, title in titles.items():
        if page.startswith(("book/", "notebooks/")):
            found.setdefault(re.sub(r".*/(\d\d_)?", "", page).replace("_", " "), page)
            found.setdefault(re.sub(r"^\d\d ", "", title).lower().replace("’", "'"), page)  # as typed
    for term, abbreviation, text in ENTRY.findall(glossary):
        if chapters := re.findall(r"\]\(\.\./(notebooks/\w+)\.ipynb\)", text):
            for name in filter(None, (term.lower(), abbreviation.lower())):
                found.setdefault(name, chapters[-1])
    for name, page in list(found.items()):
        found.setdefault(name.replace("-", " "), page)
        found.setdefault(name.replace(" ", "-"), page)
    return [(page, name) for name, page in sorted(found.items()) if page in titles]


def add_entries(app):
    """Here, where all pages are known: Sphinx forgets the entries of those that it does not write again."""
    if app.builder.search:
        index = app.builder.indexer._index_entries
        index.clear()
        titles = {page: title.astext() for page, title in app.env.titles.items()}
        for page, name in entries(titles, GLOSSARY.read_text("utf-8")):
            index.setdefault(page, []).append((name, "", "main"))
    return []


def setup(app):
    app.connect("html-collect-pages", add_entries)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
