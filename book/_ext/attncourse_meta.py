"""What other programs read of a page: Open Graph for who shares it, and for search engines, once the address is known.

`ATTNCOURSE_ADDRESS` in the environment is the site's address: https://owner.github.io/name/. Without it the picture has
a relative address, and there are no canonical links and no sitemap: nothing points to a place that may not exist.
"""

import os
import re
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote

from matplotlib.patches import Rectangle

from attncourse.lab import load_result

PICTURE = "_static/card.png"  # 1200 × 630 pixels, the size that the sites which show such cards ask for
ALT = "A grid of attention weights: “vier hundert drei und zwanzig” written from “four hundred twenty-three”."
BLUE, DARK, GREY, ORANGE = "#3d63dd", "#131a29", "#545e70", "#d9822b"  # those of the logo and of course.css
DESCRIPTION = re.compile(r'<meta name="description" content="([^"]*)"')


def address():
    """The site's address with a slash at the end, or "" where it is not known. Raises ValueError for what is none."""
    found = os.environ.get("ATTNCOURSE_ADDRESS", "").strip()
    if found and not re.fullmatch(r"https?://[\w.:-]+(/[\w.~%-]+)*/?", found):
        raise ValueError(f"ATTNCOURSE_ADDRESS={found!r} is not an address such as https://owner.github.io/name/")
    return found and found.rstrip("/") + "/"


def tag(name, content):
    return f'<meta property="{name}" content="{escape(str(content))}" />'


def page_tags(site, page, title, description):
    """The tags of one page, which `describe` of attncourse_book has given a description (escaped already)."""
    root = site or "../" * page.count("/")
    tags = {"og:type": "website" if page == "book/intro" else "article", "og:site_name": "attncourse"}
    tags |= {"og:title": title, "og:image": root + PICTURE, "og:image:width": 1200, "og:image:height": 630}
    tags |= {"og:image:alt": ALT, "og:locale": "en"}
    if site:
        tags["og:url"] = place(site, page)
    found = [tag(*pair) for pair in tags.items()]
    found += [f'<meta property="og:description" content="{description}" />'] if description else []
    found += ['<meta name="twitter:card" content="summary_large_image" />']
    found += [f'<link rel="canonical" href="{escape(place(site, page))}" />'] if site else []
    return "\n".join(found)


def place(site, page):
    return f"{site}{quote(page)}.html"


def add_tags(app, page, templatename, context, doctree):
    described = DESCRIPTION.search(context.get("metatags", ""))
    title = unescape(re.sub(r"<[^>]+>", "", context.get("title", ""))) or page.title()
    title = f"{app.config.project}: {title}" if page == app.config.root_doc else title
    context["metatags"] = context.get("metatags", "") + page_tags(
        address(), page, title, described[1] if described else ""
    )


def draw(path):
    """The picture of every page: the name, what it is, and an alignment of chapter 01, as the trained model made it."""
    from matplotlib.figure import Figure

    shown = load_result("bahdanau_alignments")["de"]["alignments"]
    example = next(one for one in shown if one["number"] == 423)
    words, written = example["source"], [word.strip("▁") for word in example["target"] if word != "<eos>"]
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(630, 0))
    axes.axis("off")
    text = {"family": "DejaVu Sans", "va": "baseline"}
    axes.text(70, 190, "attncourse", size=27, color=BLUE, weight="bold", **text)
    axes.text(70, 285, "Attention,\nrun and checked", size=43, color=DARK, weight="bold", va="top", linespacing=1.15)
    axes.texts[-1].set_y(225)
    about = "From the alignment of 2014\nto the latent caches of today:\na course in programs."
    axes.text(70, 425, about, size=21, color=GREY, va="top", linespacing=1.45, family="DejaVu Sans")
    cell, left, top = 64, 1200 - 70 - 64 * len(words), 200
    for t, row in enumerate(example["weights"][: len(written)]):
        axes.text(left - 14, top + cell * (t + 0.5), written[t], size=15, color=DARK, ha="right", va="center")
        for s, weight in enumerate(row):
            crossed = weight > 0.5 and written[t] in ("drei", "zwanzig")
            box = {"facecolor": ORANGE if crossed else BLUE, "alpha": 0.08 + 0.92 * weight, "linewidth": 0}
            axes.add_patch(Rectangle((left + cell * s + 3, top + cell * t + 3), cell - 6, cell - 6, **box))
    for s, word in enumerate(words):
        where = left + cell * (s + 0.5), top - 12
        axes.text(*where, word, size=15, color=DARK, rotation=45, ha="left", va="bottom", rotation_mode="anchor")
    figure.savefig(path, metadata={"Software": None})


def write(app, exception):
    """The picture and, where the address is known, sitemap.xml and robots.txt."""
    if exception or app.builder.format != "html":
        return
    out, site = Path(app.outdir), address()
    draw(out / PICTURE)
    for name in ("sitemap.xml", "robots.txt"):
        (out / name).unlink(missing_ok=True)
    if site:
        pages = "".join(f"<url><loc>{escape(place(site, page))}</loc></url>\n" for page in sorted(app.env.found_docs))
        head = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        (out / "sitemap.xml").write_text(f"{head}{pages}</urlset>\n", "utf-8")
        (out / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {site}sitemap.xml\n", "utf-8")


def setup(app):
    app.connect("html-page-context", add_tags)
    app.connect("build-finished", write)
    # A page says where it is: built for another address, all are written again.
    app.add_config_value("attncourse_address", address(), "html")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
