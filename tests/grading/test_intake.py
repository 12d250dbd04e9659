"""Finding submissions: folders, and zips as Canvas, Moodle and Gradescope export them; nothing else is read."""

import os
import stat
import sys
import zipfile

import pytest

from attncourse.grading import intake
from attncourse.grading.intake import IntakeError, find_submissions
from tests.grading.a_class import SOLVED, notebook, zipped

GOOD = notebook(["x = 1"])
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of bytes, links and sparse files")


def marked(text):
    return notebook([f"mark = {text!r}"])


def found(path):
    """{student: submission}"""
    submissions = find_submissions(path)
    assert [s.student for s in submissions] == sorted({s.student for s in submissions})
    return {s.student: s for s in submissions}


def packed(members, folder):
    """The bytes of a zip of {name: bytes}."""
    return zipped(members, folder / "inner.zip").read_bytes()


def marks(submission):
    """What the notebooks that count say."""
    return [book.cells[0].split("'")[1] for book in submission.notebooks]


# Canvas: last and first name, LATE, the student, the file, the title with -1, -2 … for later attempts


def test_canvas(tmp_path):
    path = zipped(
        {
            "lovelaceada_101_9001_13_gqa.ipynb": marked("first"),
            "lovelaceada_101_9007_13_gqa-2.ipynb": marked("third"),
            "lovelaceada_101_9004_13_gqa-1.ipynb": marked("second"),
            "van_der_bergan_LATE_12_9002_my notes_2.ipynb": marked("late"),
            "gaußcarl_103_9003_13_gqa.ipynb": marked("gauß"),
            "curiemarie_104_9005_essay.pdf": b"%PDF",
            "eulerleonhard_LATE_105_text.html": b"<p>see my page</p>",
            "anon_a1B2c_9006_13_gqa.ipynb": marked("anonymous"),
            "LATE_anon_z9_9008_13_gqa.ipynb": marked("anonymous and late"),
            "__MACOSX/._lovelaceada_101_9001_13_gqa.ipynb": b"\0",
        },
        tmp_path / "submissions.zip",
    )
    class_ = found(path)
    assert set(class_) == {"101", "12", "103", "104", "105", "anon_a1B2c", "anon_z9"}
    ada = class_["101"]
    assert (ada.name, ada.attempt, ada.late, marks(ada)) == ("lovelaceada", 2, False, ["third"])
    assert ada.older == ("lovelaceada_101_9001_13_gqa.ipynb", "lovelaceada_101_9004_13_gqa-1.ipynb")
    assert (class_["12"].name, class_["12"].late, marks(class_["12"])) == ("van_der_bergan", True, ["late"])
    assert class_["103"].name == "gaußcarl"
    assert class_["104"].problem == "no notebook (.ipynb) was handed in, only essay.pdf"
    assert class_["105"].late and "text.html" in class_["105"].problem
    assert not class_["anon_a1B2c"].late and class_["anon_z9"].late


def test_several_notebooks_of_one_attempt_count_together(tmp_path):
    path = zipped(
        {
            "a_1_10_05_causal.ipynb": marked("5"),
            "a_1_11_13_gqa.ipynb": marked("13"),
            "b_2_12_week-3.ipynb": notebook(["def one():\n    pass"]),
            "b_2_13_week-4.ipynb": notebook(["def two():\n    pass"]),
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert marks(class_["1"]) == ["5", "13"] and class_["1"].older == ()
    assert [book.name for book in class_["2"].notebooks] == ["b_2_12_week-3.ipynb", "b_2_13_week-4.ipynb"]


def test_the_latest_counts_even_if_it_cannot_be_read(tmp_path):
    class_ = found(zipped({"a_1_10_x.ipynb": GOOD, "a_1_11_x-1.ipynb": b'{"cells": ['}, tmp_path / "s.zip"))
    assert class_["1"].notebooks[0].cells is None and class_["1"].older == ("a_1_10_x.ipynb",)


# Moodle: a folder for each student, or none where the site is set so


@pytest.mark.parametrize("between", ["/", ""])
def test_moodle(between, tmp_path):
    path = zipped(
        {
            f"Ada Lovelace_123456_assignsubmission_file_{between}13_gqa.ipynb": marked("ada"),
            f"Jan van der Berg_123457_assignsubmission_file_{between}x.ipynb": marked("jan"),
            "Emmy Noether_123458_assignsubmission_onlinetext_/onlinetext.html": b"<p>",
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert {s.student: s.name for s in class_.values()} == {
        "123456": "Ada Lovelace",
        "123457": "Jan van der Berg",
        "123458": "Emmy Noether",
    }
    assert marks(class_["123456"]) == ["ada"] and "onlinetext.html" in class_["123458"].problem


def test_one_student_of_moodle_is_not_taken_for_a_wrapper(tmp_path):
    class_ = found(zipped({"Ada L_12_assignsubmission_file_/x.ipynb": GOOD}, tmp_path / "s.zip"))
    assert list(class_) == ["12"]


def test_nobody_hands_in_for_another_by_a_name(tmp_path):
    """A student who is called x_101, and files whose titles look like what systems add."""
    path = zipped(
        {
            "lovelaceada_101_9001_gqa.ipynb": marked("ada"),
            "x_101_202_9002_gqa.ipynb": marked("mallory, 202"),
            "emmy_103_9003_7_gqa.ipynb": marked("emmy"),
            "eve_104_9004_8_gqa.ipynb": marked("eve"),
            "y_104_204_9005_gqa.ipynb": marked("mallory, 204"),
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert {s.student: marks(s) for s in class_.values()} == {
        "101": ["ada"],
        "202": ["mallory, 202"],
        "103": ["emmy"],
        "eve_104": ["eve"],
        "y_104": ["mallory, 204"],
    }
    assert class_["202"].name == "x_101" and class_["eve_104"].ids == class_["y_104"].ids == ()
    evil = "x_9_assignsubmission_file_z.ipynb"
    path = zipped({f"Eve_7_assignsubmission_file_{evil}": GOOD, f"Ann_8_assignsubmission_file_/{evil}": GOOD}, path)
    assert set(found(path)) == {"7", "8"}
    path = zipped(
        {f"submission_{i}/x.ipynb": GOOD for i in (1, 2)} | {"submission_1/submission_metadata.yml": b"a: 1"}, path
    )
    assert set(found(path)) == {"submission_1", "submission_2"}


def test_long_names_cost_no_time(tmp_path):
    names = ["anon_" * 13_000, "_1" * 30_000, "1" * 60_000, "_LATE" * 12_000, "a-" * 30_000]
    class_ = found(zipped({f"{name}.ipynb": GOOD for name in names}, tmp_path / "s.zip"))
    assert len(class_) == 5 and max(map(len, class_)) < 250


# Gradescope: submission_N/ in a folder, with a list of the submitters

METADATA = """\
submission_11:
  :submitters:
  - :name: Ada Lovelace
    :sid: '301'
    :email: ada@example.edu
  :created_at: 2026-09-21 03:59:33.402640000 Z
  :score: 3.0
  :history:
  - :id: 7
    :created_at: !ruby/object:ActiveSupport::TimeWithZone
      utc: 2026-09-20 03:59:33 Z
submission_12:
  :submitters:
  - :name: Pair One
    :email: one@example.edu
  - :name: Pair Two
    :email: two@example.edu
"""


def test_gradescope(tmp_path):
    path = zipped(
        {
            "assignment_77_export/submission_metadata.yml": METADATA.encode(),
            "assignment_77_export/submission_11/13_gqa.ipynb": marked("ada"),
            "assignment_77_export/submission_12/homework/13_gqa.ipynb": marked("pair"),
            "assignment_77_export/submission_13/13_gqa.ipynb": marked("nobody"),
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert set(class_) == {"301", "one@example.edu", "two@example.edu", "submission_13"}
    assert (class_["301"].name, class_["301"].attempt) == ("Ada Lovelace", 2)
    assert class_["301"].ids == (("SIS User ID", "301"), ("SIS Login ID", "ada@example.edu"))
    assert marks(class_["one@example.edu"]) == marks(class_["two@example.edu"]) == ["pair"]


def test_two_people_of_one_number_are_kept_apart(tmp_path):
    """A number or a name may be what a student typed: nobody hands in for another, or gets another's points."""
    people = [
        ("Ada", "ada@example.edu", "301"),
        ("Mallory", "mallory@example.edu", "301"),
        ("Bo", "bo@example.edu", ""),
        ("Eve", "eve@example.edu", "bo@example.edu"),
        ("Cy", "cy@example.edu", "307"),
    ]
    metadata = "".join(
        f"submission_{i}:\n  :submitters:\n  - :name: {name}\n    :email: {email}\n    :sid: '{sid}'\n"
        for i, (name, email, sid) in enumerate(people)
    )
    books = {f"submission_{i}/x.ipynb": marked(name) for i, (name, *_) in enumerate(people)}
    class_ = found(zipped({"submission_metadata.yml": metadata.encode()} | books, tmp_path / "s.zip"))
    assert {student: marks(s) for student, s in class_.items()} == {
        "301_submission_0": ["Ada"],
        "301_submission_1": ["Mallory"],
        "bo@example.edu_submission_2": ["Bo"],
        "bo@example.edu_submission_3": ["Eve"],
        "307": ["Cy"],
    }
    assert [bool(s.ids) for s in class_.values()] == [False, False, True, False, False]


def test_the_list_of_submitters_makes_no_objects(tmp_path, monkeypatch):
    hostile = b"submission_1:\n  :submitters:\n  - :name: !!python/object/apply:os.system ['touch ran']\n    :sid: 7\n"
    path = zipped({"submission_metadata.yml": hostile, "submission_1/x.ipynb": GOOD}, tmp_path / "s.zip")
    monkeypatch.chdir(tmp_path)
    assert set(found(path)) == {"7"} and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", [b"- 1\n", b"a: [", b"\xff\xfe", b""])
def test_a_list_that_is_none_is_said(text, tmp_path):
    path = zipped({"submission_metadata.yml": text, "submission_1/x.ipynb": GOOD}, tmp_path / "s.zip")
    with pytest.raises(IntakeError, match="submission_metadata"):
        find_submissions(path)


# Folders


def test_a_folder_of_notebooks_and_one_of_folders(tmp_path):
    (tmp_path / "ann.ipynb").write_bytes(marked("ann"))
    (tmp_path / "README.md").write_text("not a submission")
    for student in ("bob", "cyd"):
        (tmp_path / student / "work" / ".ipynb_checkpoints").mkdir(parents=True)
        (tmp_path / student / "work" / "13_gqa.ipynb").write_bytes(marked(student))
        (tmp_path / student / "work" / ".ipynb_checkpoints" / "13_gqa.ipynb").write_bytes(marked("old"))
    (tmp_path / "dan").mkdir()
    (tmp_path / "dan" / "answers.txt").write_text("42")
    class_ = found(tmp_path)
    assert {s.student: marks(s) for s in class_.values()} == {"ann": ["ann"], "bob": ["bob"], "cyd": ["cyd"], "dan": []}
    assert class_["dan"].problem.endswith("only answers.txt")


def test_attempts_in_folders_of_numbers(tmp_path):
    for n in ("attempt 2", "attempt 10", "1"):
        (tmp_path / "ann" / n).mkdir(parents=True)
        (tmp_path / "ann" / n / "13_gqa.ipynb").write_bytes(marked(n))
    ann = found(tmp_path)["ann"]
    assert (ann.attempt, marks(ann)) == (10, ["attempt 10"])
    assert ann.older == ("ann/1/13_gqa.ipynb", "ann/attempt 2/13_gqa.ipynb")


def test_an_unpacked_export_reads_like_the_zip(tmp_path):
    names = {"a_LATE_1_10_x.ipynb": GOOD, "b_2_11_x.ipynb": GOOD}
    (tmp_path / "out").mkdir()
    for name, data in names.items():
        (tmp_path / "out" / name).write_bytes(data)
    assert found(tmp_path / "out") == found(zipped(names, tmp_path / "s.zip"))


def test_a_folder_of_results_is_left_out(tmp_path):
    (tmp_path / "ann.ipynb").write_bytes(GOOD)
    (tmp_path / "grades" / "feedback").mkdir(parents=True)
    (tmp_path / "grades" / "feedback" / "ann.html").write_text("<p>")
    assert [s.student for s in find_submissions(tmp_path, leave_out=tmp_path / "grades")] == ["ann"]


def test_one_notebook(tmp_path):
    (tmp_path / "ann.ipynb").write_bytes(GOOD)
    assert list(found(tmp_path / "ann.ipynb")) == ["ann"]


def test_a_zip_of_folders_within_one_folder(tmp_path):
    path = zipped({"week3/ann/x.ipynb": marked("a"), "week3/bob/x.ipynb": marked("b")}, tmp_path / "s.zip")
    assert set(found(path)) == {"ann", "bob"}
    assert set(found(zipped({"w/ann.ipynb": GOOD, "w/bob.ipynb": GOOD}, tmp_path / "t.zip"))) == {"ann", "bob"}
    assert set(found(zipped({"ann/x.ipynb": GOOD}, tmp_path / "one.zip"))) == {"ann"}


def test_nothing_to_grade(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "not.zip").write_text("no zip")
    zipped({}, tmp_path / "none.zip")
    for name, words in {"empty": "holds no submission", "none.zip": "holds no", "not.zip": "nor a whole zip"}.items():
        with pytest.raises(IntakeError, match=words):
            find_submissions(tmp_path / name)
    with pytest.raises(IntakeError, match="there is no"):
        find_submissions(tmp_path / "missing")


# A student's own zip within


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("a_1_10_work.zip", "1"),
        ("Ann L_1_assignsubmission_file_/work.ZIP", "1"),
        ("Ann L_1_assignsubmission_file_work.zip", "1"),
        ("ann/work.zip", "ann"),
        ("ann.zip", "ann"),
    ],
)
def test_notebooks_in_a_students_zip_count_as_the_students_own(name, student, tmp_path):
    work = {
        "week/13_gqa.ipynb": marked("in the zip"),
        "week/notes.pdf": b"%PDF",
        "week/.ipynb_checkpoints/13_gqa.ipynb": marked("old"),
        "__MACOSX/week/._13_gqa.ipynb": b"\0",
    }
    path = zipped({name: packed(work, tmp_path), "b_2_11_x.ipynb": marked("b")}, tmp_path / "s.zip")
    ann = found(path)[student]
    assert (marks(ann), ann.problem) == (["in the zip"], "")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    assert marks(found(tmp_path / "out")[student]) == ["in the zip"]


def test_a_zip_for_a_group(tmp_path):
    books = {"submission_12/work.zip": packed({"x.ipynb": marked("pair")}, tmp_path)}
    class_ = found(zipped({"submission_metadata.yml": METADATA.encode()} | books, tmp_path / "s.zip"))
    assert marks(class_["one@example.edu"]) == marks(class_["two@example.edu"]) == ["pair"]


def test_a_later_attempt_counts_in_a_zip_or_not(tmp_path):
    first, second = (packed({"x.ipynb": marked(text)}, tmp_path) for text in ("first", "second"))
    path = zipped(
        {
            "a_1_10_x.ipynb": marked("first"),
            "a_1_11_work-1.zip": second,
            "b_2_10_work.zip": first,
            "b_2_11_x-1.ipynb": marked("second"),
            "c_3_10_work.zip": first,
            "c_3_11_work-1.zip": second,
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert [(marks(s), len(s.older), s.attempt) for s in class_.values()] == [(["second"], 1, 1)] * 3


def test_a_students_zip_that_is_not_opened_costs_only_its_owner(tmp_path, monkeypatch):
    book = {"x.ipynb": GOOD}
    inner, link = packed(book, tmp_path), zipfile.ZipInfo("x.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    encrypted = bytearray(inner)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(signature) + at] |= 1
    zips = {
        "ratio": (packed({"x.ipynb": b" " * (15 << 20)}, tmp_path), "as a zip bomb does"),
        "large": (packed({"x.ipynb": os.urandom(1000) * 30_000}, tmp_path), "x.ipynb has 30 MB; at most 21"),
        "itself": (b" " * (15 << 20), "itself.zip unpacks from"),
        "deeper": (packed({"in.zip": packed({"in.zip": inner}, tmp_path)}, tmp_path), "in.zip is a zip within the zip"),
        "path": (packed({"../../x.ipynb": GOOD}, tmp_path), "the path of x.ipynb leads out of its folder"),
        "link": (packed({link: b"/etc/passwd"}, tmp_path), "x.ipynb is a symbolic link; it was not read"),
        "encrypted": (bytes(encrypted), "x.ipynb is encrypted"),
        "broken": (inner[:-30], "broken.zip is not a whole zip"),
        "text": (b"my answers", "text.zip is not a whole zip"),
        "empty": (packed({}, tmp_path), "empty.zip holds no file"),
        "essay": (packed({"essay.pdf": b"%PDF"}, tmp_path), "only essay.pdf"),
        "many": (packed({f"{i}.txt": b"" for i in range(60)}, tmp_path), "many.zip was not opened: more than 50 files"),
    }
    members = {f"{name}/{name}.zip": data for name, (data, _) in zips.items()}
    path = zipped(members | {"good/x.ipynb": GOOD, "good/work.zip": inner}, tmp_path / "s.zip")
    monkeypatch.setattr(intake, "MAX_FILES", 50)
    class_ = found(path)
    assert [book.cells for book in class_["good"].notebooks] == [("x = 1",)]
    for name, (_, words) in zips.items():
        said = " ".join([class_[name].problem, *(book.problem for book in class_[name].notebooks)])
        assert words in said and not any(book.cells for book in class_[name].notebooks), (name, said)
    assert {p.name for p in tmp_path.iterdir()} == {"s.zip", "inner.zip"}


def test_zips_and_what_is_in_them_count_together(tmp_path, monkeypatch):
    inner = packed({"x.ipynb": GOOD, "y.ipynb": GOOD}, tmp_path)
    path = zipped({"ann/work.zip": inner, "bob/x.ipynb": GOOD}, tmp_path / "s.zip")
    monkeypatch.setattr(intake, "MAX_TOTAL", len(inner) + 10)
    class_ = found(path)
    assert [book.cells for book in class_["ann"].notebooks] == [("x = 1",), None]
    assert "y.ipynb was not read: the notebooks have more than" in class_["ann"].notebooks[1].problem
    assert class_["bob"].notebooks[0].cells == ("x = 1",)
    many = {f"ann/{i}.zip": packed({f"{i}.txt": b"", f"{i}.ipynb": GOOD}, tmp_path) for i in range(4)}
    monkeypatch.setattr(intake, "MAX_TOTAL", 1 << 20)
    monkeypatch.setattr(intake, "MAX_FILES", 5)
    ann = found(zipped(many | {"bob/x.ipynb": GOOD}, tmp_path / "t.zip"))["ann"]
    assert [book.cells is not None for book in ann.notebooks] == [True, True, False, False]


def test_what_is_wrong_with_a_file_is_said_by_the_name_that_its_owner_gave_it(tmp_path):
    cut = notebook(["x = 1"])[:60]
    line = cut.count(b"\n") + 1
    words = f"week 3.ipynb is cut off or damaged in line {line} (not whole JSON): download it and hand it in again"
    class_ = found(zipped({"a_1_10_week 3.ipynb": cut, "b_2_11_week 3-1.ipynb": b""}, tmp_path / "s.zip"))
    assert class_["1"].notebooks[0].problem == words and class_["1"].notebooks[0].name == "a_1_10_week 3.ipynb"
    assert class_["2"].notebooks[0].problem.startswith("week 3-1.ipynb is an empty file: ")
    class_ = found(zipped({"Ann_7_assignsubmission_file_week 3.ipynb": cut}, tmp_path / "s.zip"))
    assert class_["7"].notebooks[0].problem == words


# Files that are no good


@LINUX
def test_files_that_cannot_be_read_cost_only_their_owner(tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(marked("secret"))
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "good.ipynb").write_bytes(marked("good"))
    (folder / "empty.ipynb").write_bytes(b"")
    (folder / "truncated.ipynb").write_bytes(notebook(SOLVED)[:3000])
    (folder / "deep.ipynb").write_bytes(b'{"cells": ' + b"[" * 100_000)
    (folder / "digits.ipynb").write_bytes(b'{"cells": ' + b"1" * 10_000 + b"}")
    (folder / "latin.ipynb").write_bytes("é".encode("latin-1"))
    (folder / "code.ipynb").write_bytes(notebook(["x = 1\n" * 200_000]))
    (folder / "link.ipynb").symlink_to(secret)
    (folder / "folder.ipynb").symlink_to(tmp_path)
    (folder / "dangling.ipynb").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.ipynb")
    with open(folder / "huge.ipynb", "wb") as file:
        file.truncate(200 << 20)
    class_ = found(folder)
    assert marks(class_.pop("good")) == ["good"]
    problems = {
        student: " ".join([s.problem, *(book.problem for book in s.notebooks)]) for student, s in class_.items()
    }
    assert all(book.cells is None for s in class_.values() for book in s.notebooks)
    expected = {
        "empty": "is an empty file",
        "truncated": "truncated.ipynb is cut off or damaged in line",
        "deep": "not a notebook of format 4",
        "digits": "not a notebook of format 4",
        "latin": "not UTF-8",
        "code": "1.4 MB of code; at most 0.9",
        "link": "a symbolic link; it was not read",
        "folder.ipynb": "only a link that is not followed",
        "dangling": "a symbolic link; it was not read",
        "pipe": "is no file",
        "huge": "210 MB; at most 21 are read",
    }
    assert set(problems) == set(expected)
    for student, words in expected.items():
        assert words in problems[student], (student, problems[student])


@LINUX
def test_names_that_are_not_utf8_or_steer_a_terminal(tmp_path):
    for name in (
        b"Jos\xe9.ipynb",
        b"\x1b[31mred.ipynb",
        "\u202egpj.ipynb".encode(),
        b"line\nbreak.ipynb",
        b"-rf.ipynb",
    ):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(GOOD)
    class_ = found(tmp_path)
    assert set(class_) == {"José", "\\x1b[31mred", "\\u202egpj", "line\\nbreak", "-rf"}
    assert all(text.isprintable() for s in class_.values() for text in (s.student, s.name, s.notebooks[0].name))


def test_names_in_a_zip_that_are_not_utf8(tmp_path):
    raw = {b"jos##_1_2_x.ipynb": "josé_1_2_x.ipynb".encode(), b"ren#_3_4_x.ipynb": b"ren\x82_3_4_x.ipynb"}
    path = zipped({name.decode(): GOOD for name in raw}, tmp_path / "s.zip")
    data = path.read_bytes()
    for name, written in raw.items():  # as old systems write them: bytes, not declared to be anything
        data = data.replace(name, written)
    path.write_bytes(data)
    assert {s.name for s in found(path).values()} == {"josé", "rené"}


def test_paths_that_lead_out_of_a_zip(tmp_path):
    outside = tmp_path / "evil.ipynb"
    path = zipped(
        {
            "../../evil.ipynb": GOOD,
            "/etc/cron.d/job.ipynb": GOOD,
            "Ann B_7_assignsubmission_file_/../../../evil.ipynb": GOOD,
            "bob\\work\\x.ipynb": marked("bob"),
            "C:\\cyd.ipynb": GOOD,
            "x/" * 200 + "deep.ipynb": GOOD,
            "n" * 3000 + ".ipynb": GOOD,
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert not outside.exists()
    assert class_["evil"].notebooks[0].problem == "the path of evil.ipynb leads out of its folder; it was not read"
    assert "leads out" in class_["7"].notebooks[0].problem
    assert marks(class_["bob"]) == ["bob"]
    assert not [p for p in tmp_path.rglob("*") if p.name != "s.zip"]


def test_a_symbolic_link_in_a_zip(tmp_path):
    link = zipfile.ZipInfo("ann_1_2_x.ipynb")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    class_ = found(zipped({link: b"/etc/passwd", "bob_3_4_x.ipynb": GOOD}, tmp_path / "s.zip"))
    assert class_["1"].notebooks[0].problem.endswith("is a symbolic link; it was not read")
    assert class_["3"].notebooks[0].cells == ("x = 1",)


def test_bombs_in_a_zip(tmp_path, monkeypatch):
    inner = zipped({"x.ipynb": b" " * (5 << 20)}, tmp_path / "inner.zip").read_bytes()
    path = zipped(
        {
            "ratio_1_2_x.ipynb": b" " * (15 << 20),
            "large_3_4_x.ipynb": os.urandom(1000) * 30_000,
            "nested_5_6_x.zip": inner,
            "good_7_8_x.ipynb": GOOD,
        },
        tmp_path / "s.zip",
    )
    class_ = found(path)
    assert "x.ipynb unpacks from" in class_["1"].notebooks[0].problem
    assert "30 MB; at most 21 are read" in class_["3"].notebooks[0].problem
    assert "as a zip bomb does" in class_["5"].notebooks[0].problem
    assert class_["7"].notebooks[0].cells == ("x = 1",)
    monkeypatch.setattr(intake, "MAX_FILES", 3)
    with pytest.raises(IntakeError, match="holds 4 files; at most 3"):
        find_submissions(path)


def test_one_student_cannot_use_up_what_may_be_read_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_TOTAL", len(GOOD) + 10)
    many = {f"ann/{i}.ipynb": GOOD for i in range(4)} | {"bob/x.ipynb": GOOD}
    class_ = found(zipped(many, tmp_path / "many.zip"))
    assert [book.cells is not None for book in class_["ann"].notebooks] == [True, True, False, False]
    assert "3.ipynb was not read: the notebooks have more than" in class_["ann"].notebooks[3].problem
    assert class_["bob"].notebooks[0].cells == ("x = 1",)


def test_a_header_that_lies_and_damage_and_encryption(tmp_path):
    path = zipped({"a_1_2_x.ipynb": notebook(["y" * 50_000]), "b_3_4_x.ipynb": GOOD}, tmp_path / "s.zip")
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")  # the first unpacks to ten bytes, it says
    second = data.index(b"PK\x03\x04", 4)
    data[second + 60] ^= 0xFF
    path.write_bytes(data)
    class_ = found(path)
    assert class_["1"].notebooks[0].cells is None and class_["3"].notebooks[0].cells is None
    other = zipped({"a_1_2_x.ipynb": GOOD}, tmp_path / "t.zip")
    data = bytearray(other.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + at] |= 1
    other.write_bytes(data)
    assert "encrypted" in found(other)["1"].notebooks[0].problem


def test_a_student_with_a_hundred_notebooks(tmp_path):
    path = zipped({f"ann/{i:03}.ipynb": GOOD for i in range(100)} | {"bob/x.ipynb": GOOD}, tmp_path / "s.zip")
    ann = found(path)["ann"]
    assert len(ann.notebooks) == 40 and ann.problem == "more than 40 notebooks; the rest was not read"
