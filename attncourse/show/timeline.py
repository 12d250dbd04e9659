"""A timeline: ideas and models in the order in which they came, as a list."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from attncourse.show.html import Output, fragment, prose
from attncourse.show.map import check_timeline
from attncourse.show.map_words import Link, beside

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def timeline(entries: Sequence[Mapping[str, Any]], *, link: Link = beside) -> Output:
    """Ideas and models from 2014 to today: who, what was new, the chapter about it, and the source.

    entries: the contents of `data/timeline.json`, in time. link: as for `attention_map`. An idea has a circle, a model
    a square and the word.

    Raises ValueError for entries that lack something or are not in order.
    """
    check_timeline(entries)
    if not entries:
        raise ValueError("the timeline has no entries")
    items = "".join(_item(entry, link) for entry in entries)
    lines = [
        f"{entry['date']}  {entry['title']} ({entry['kind']}). {entry['who']}: {entry['what']}" for entry in entries
    ]
    html = fragment(f'<ol class="ac-timeline-list">{items}</ol>', kind="timeline", styles=["timeline.css"])
    return Output("\n".join(lines), html, list(entries))


def when(date: str) -> str:
    """`2017-06` as `June 2017`."""
    year, month = date.split("-")
    return f"{MONTHS[int(month) - 1]} {year}"


def _item(entry: Mapping[str, Any], link: Link) -> str:
    chapter = entry.get("chapter")
    links = [
        (f"Chapter {chapter[:2]}", link(f"notebooks/{chapter}", "")) if chapter else ("", None),
        (f"{entry['who']} {entry['date'][:4]}", link("book/bibliography", entry["source"])),
    ]
    anchors = "".join(f'<a href="{escape(href)}">{escape(text)}</a>' for text, href in links if href)
    month = f'<time datetime="{entry["date"]}">{when(entry["date"])}</time>'
    return (
        f'<li class="ac-{entry["kind"]}"><p class="ac-when">{month} · {entry["kind"]}</p>'
        f"<p><b>{escape(entry['title'])}</b></p><p>{prose(entry['what'])}</p><p>{anchors}</p></li>"
    )
