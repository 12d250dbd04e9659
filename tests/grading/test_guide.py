"""The instructor guide: its commands print what it says they print, and its pictures show the pages of today."""

import os
import re

from PIL import Image

from attncourse.grading import bundle
from scripts import guide


def plain(page):
    """The page without what differs from run to run: seconds."""
    return re.sub(r"in \d+\.\d s$", "in … s", page, flags=re.MULTILINE)


def test_the_guides_commands_print_what_it_says(tmp_path, monkeypatch):
    def no_wheel(course, folder):  # it is built in tests of its own
        folder.mkdir()
        wheel = folder / "attncourse-0.1.0-py3-none-any.whl"
        wheel.write_bytes(b"not needed here")
        return wheel

    monkeypatch.setattr(bundle, "build_wheel", no_wheel)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # lines in one order
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    page = guide.PAGE.read_text("utf-8")
    again = guide.transcribed(page, tmp_path)
    assert page.count("$ attncourse") >= 4 and " graded, " in page
    assert plain(again).splitlines() == plain(page).splitlines(), "after a change that is meant: make guide"
    shown = guide.made_from(tmp_path)
    for name in guide.PICTURES:
        for scheme in ("light", "dark"):
            picture = guide.PAGE.parent / f"{name}-{scheme}.png"
            assert picture.stat().st_size < 120_000
            assert Image.open(picture).text["made-from"] == shown[name], f"{picture.name} is out of date: make guide"
