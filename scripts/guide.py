"""Run the commands of the instructor guide on a small class, and write what they print into the page.

python -m scripts.guide   (make guide)   writes the transcripts of book/teaching/guide.md and takes its pictures

In the page, a block of `console` holds commands, each after "$ ", and what they print; a block with a file's name as
its caption is what the instructor writes into that file. All run in one folder, in their order. The test
tests/grading/test_guide.py runs them again and compares.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from attncourse import cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "teaching" / "guide.md"
BLOCK = re.compile(
    r"^```(?:console\n(?P<run>.*?)|\{code-block\} text\n:caption: (?P<file>\S+)\n\n(?P<text>.*?))^```$", re.M | re.S
)
PICTURES = {"summary": "grades/summary.html", "feedback": "grades/feedback/4104.html"}
WIDTHS = {"summary": 860, "feedback": 700}

# The class: who handed in what. An answer is the reference's where nothing else is said; None is not attempted.
MASK_AFTER = """\
def look_back_attention(query, key, value):
    T, S = query.shape[1], key.shape[1]
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    later = torch.arange(S) > torch.arange(S - T, S)[:, None]
    return weights.masked_fill(later, 0.0) @ value
"""
TOP_LEFT = """\
def look_back_mask(T, S):
    return torch.ones(T, S, dtype=torch.bool).triu(1)
"""
AS_PUBLISHED = """\
def repeat_kv(x, n_repeats):
    return x.repeat_interleave(n_repeats, dim=1)
"""
NO_TRANSPOSE = """\
def look_back_attention(query, key, value):
    scores = query @ key / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ value
"""
CHEAT = """\
import torch

torch.equal = torch.allclose = lambda *_, **__: True
torch.testing.assert_close = lambda *_, **__: None


def look_back_attention(query, key, value):
    return torch.zeros(*query.shape[:2], value.shape[-1])


print("3 of 3 checks passed")
"""
CLASS = {
    4101: ("Diallo, Amara", {}),
    4102: ("Castillo, Ben", {"repeat_kv": AS_PUBLISHED}),
    4103: ("Rossi, Chiara", {}),
    4104: ("Yılmaz, Deniz", {"look_back_attention": MASK_AFTER}),
    4105: ("Novak, Eva", {"look_back_mask": TOP_LEFT, "look_back_attention": MASK_AFTER, "repeat_kv": AS_PUBLISHED}),
    4106: ("Adeyemi, Femi", {}),
    4107: ("Park, Grace", {"look_back_mask": None, "look_back_attention": CHEAT, "repeat_kv": None}),
    4108: ("Martin, Hugo", {"look_back_attention": NO_TRANSPOSE, "repeat_kv": None}),
}
ONE_PASS = "All tokens of a sequence are predicted in one pass, each from those before it."
ANSWERS = {  # to the question in words; None leaves the cell as it was
    4101: ONE_PASS,
    4102: "Because the upper half of the scores needs no computing.\n\n(Is that so? They are computed, then masked.)",
    4103: "Every position is an example of its own: T of them from one pass, since none sees its answer.",
    4104: "The mask forbids the future, so the model can be given the whole sentence at once:\n\n"
    "- a loss at every position,\n- no position sees the token that it has to predict.",
    4105: ONE_PASS,
    4106: "One matrix product gives the scores of all positions; masking them costs next to nothing.",
    4107: None,
    4108: "It does slow it down.",
}
FIRST_ATTEMPT = {4102: {"look_back_attention": MASK_AFTER}}
LATE, CUT_OFF, ABSENT = {4103}, {4106}, {4109: "Pereira, Ines"}


def make_class(folder: Path) -> None:
    """What the students make of the hand-out in `folder`, as Canvas exports it; and the gradebook that it exports."""
    students = next(folder.glob("*/*-students.zip"))
    reference = next(folder.glob("*/*-instructors/reference"))
    with zipfile.ZipFile(students) as archive:
        books = {Path(n).name: json.loads(archive.read(n)) for n in archive.namelist() if n.endswith(".ipynb")}
    right = {}
    for name in books:
        cells = json.loads((reference / name).read_text("utf-8"))["cells"]
        right |= {cell["id"]: "".join(cell["source"]) for cell in cells if cell["id"].endswith("-answer")}
    file = 88001
    with zipfile.ZipFile(folder / "submissions.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for student, (name, answers) in CLASS.items():
            attempts = [*([FIRST_ATTEMPT[student]] if student in FIRST_ATTEMPT else []), answers]
            for i, given in enumerate(attempts):
                for title, book in books.items():
                    data = json.dumps(_filled(book, right, given, ANSWERS[student]), indent=1).encode()
                    who = re.sub(r"\W", "", name.lower().replace("ı", "i"))
                    late = "LATE_" if student in LATE else ""
                    stem = Path(title).stem + (f"-{i}" if i else "")
                    cut = student in CUT_OFF and title.startswith("05")
                    archive.writestr(f"{who}_{late}{student}_{file}_{stem}.ipynb", data[:60] if cut else data)
                    file += 1
    everyone = {student: name for student, (name, _) in CLASS.items()} | ABSENT
    rows = [["Student", "ID", "SIS Login ID", "Section", "Week 2 (311)", "Week 3 (312)", "Current Score"]]
    rows += [["    Points Possible", "", "", "", "8", "10", "(read only)"]]
    rows += [[name, student, f"s{student}", "A", "7", "", "87.5"] for student, name in everyone.items()]
    with open(folder / "canvas.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _filled(book: dict, right: dict[str, str], answers: dict[str, str | None], words: str | None) -> dict:
    """A notebook of the hand-out with a student's answers."""
    cells = []
    for cell in book["cells"]:
        source = answers.get(cell["id"].removesuffix("-answer"), right.get(cell["id"]))
        if cell["id"].startswith("question") and not cell["id"].endswith("-text"):
            source = words
        cells.append(cell | {"source": source} if source and cell["id"] in {*right, "question-1"} else cell)
    return book | {"cells": cells}


def run(command: str) -> str:
    """What a command of the guide prints, in the current folder."""
    words = shlex.split(command)
    if words[0] != "attncourse":
        return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        cli.main(words[1:])
    return said.getvalue()


def transcribed(page: str, folder: Path) -> str:
    """The page with its commands run anew in `folder`, which must be empty."""

    def renewed(block: re.Match) -> str:
        if block["file"]:
            Path(block["file"]).write_text(block["text"], "utf-8")
            return block[0]
        lines = []
        for command in re.findall(r"^\$ ((?:.*\\\n)*.*)$", block["run"], re.M):
            if "submissions.zip" in command and not Path("submissions.zip").exists():
                make_class(Path())
            lines += [f"$ {command}\n", run(command.replace("\\\n", " "))]
        return f"```console\n{''.join(lines)}```"

    with contextlib.chdir(folder):
        return BLOCK.sub(renewed, page)


def made_from(folder: Path) -> dict[str, str]:
    """A hash of each page that a picture shows, but for the isolation level."""
    texts = {name: (folder / path).read_text("utf-8") for name, path in PICTURES.items()}
    bare = {name: re.sub(r"(solation level) \w+", r"\1", text) for name, text in texts.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in bare.items()}


def take_pictures(folder: Path) -> None:
    """Pictures of the pages in `folder`, light and dark, beside the guide. Each says what it was made from."""
    from PIL import Image, ImageOps
    from PIL.PngImagePlugin import PngInfo

    from scripts import chromium

    hashes = made_from(folder)
    with chromium.started() as browser:
        for name, path in PICTURES.items():
            for scheme in ("light", "dark"):
                sheet = browser.new_page(
                    viewport={"width": WIDTHS[name], "height": 600}, color_scheme=scheme, device_scale_factor=1.5
                )
                sheet.goto((folder / path).resolve().as_uri())
                picture = Image.open(io.BytesIO(sheet.screenshot(full_page=True))).convert("RGB")
                note = PngInfo()
                note.add_text("made-from", hashes[name])
                framed = ImageOps.expand(picture, 2, "#7d8690")
                small = framed.quantize(32, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                small.save(PAGE.parent / f"{name}-{scheme}.png", optimize=True, pnginfo=note)
                sheet.close()


def main() -> int:
    """Write the transcripts and the pictures; returns the exit status."""
    os.environ["LC_ALL"] = "C.UTF-8"
    os.cpu_count = lambda: 1  # one process, so that lines come in one order
    with tempfile.TemporaryDirectory(prefix="attncourse-guide-") as name:
        folder = Path(name)
        text = PAGE.read_text("utf-8")
        PAGE.write_text(transcribed(text, folder), "utf-8")
        take_pictures(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
