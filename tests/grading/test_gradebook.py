"""The gradebook: Canvas's columns, the instructor's export and adjustments, and no formula of a student's."""

import csv
import io
from dataclasses import replace

import pytest

from attncourse.grading.classroom import Graded, Work
from attncourse.grading.gradebook import (
    GradebookError,
    fill_gradebook,
    guarded,
    keep_to,
    marks,
    new_gradebook,
    read_adjustments,
    write_template,
)
from attncourse.grading.intake import Submission
from attncourse.grading.key import Assigned

IDS = ("gqa/repeat_kv", "gqa/pool_heads")
ASSIGNED = tuple(Assigned(id, None, points) for id, points in zip(IDS, (3, 1), strict=True))
QUESTION = {"id": "essay", "title": "Why?", "points": 5.0}
WORK = Work("Week 3", ASSIGNED, {id: (0, 1) for id in IDS}, True)


def graded(student, *points, name=None, late=False, ids=()):
    exercises = tuple({"id": id, "points": n} for id, n in zip(IDS, points or (3, 1), strict=True))
    return Graded(Submission(student, name or student, 1, late, (), ids=ids), exercises)


def rows(text):
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))


def given(items, text="", work=WORK, path=None):
    path.write_text(f"what,student,exercise,points,note\n{text}", "utf-8")
    return marks(items, work, read_adjustments(path, work))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adjustments.csv"


def test_a_new_gradebook_has_the_columns_of_canvas(file):
    items = [
        graded("101", name="lovelaceada", ids=(("ID", "101"),)),
        graded("7", 3, 0, name="Ada", ids=(("SIS User ID", "7"), ("SIS Login ID", "ada@x.edu"))),
        graded("bob", ids=(("", "bob"),)),
        graded("123", name="Carl Gauß"),
    ]
    text = new_gradebook(items, WORK, given(items, path=file))
    assert rows(text) == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "Week 3"],
        ["    Points Possible", "", "", "", "", "4"],
        ["lovelaceada", "101", "", "", "", "4"],
        ["Ada", "", "7", "ada@x.edu", "", "3"],
        ["bob", "", "", "bob", "", "4"],
        ["Carl Gauß", "", "", "", "", "4"],
    ]


@pytest.mark.parametrize("begin", "=+-@\t\r＝")
def test_no_cell_is_a_formula(begin, file):
    hostile = f'{begin}HYPERLINK("http://x","y")'
    items = [graded(hostile, name=hostile), graded(" " + hostile)]
    cells = [cell for row in rows(new_gradebook(items, WORK, given(items, path=file))) for cell in row]
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@", "＝", "\t", "\r"))]
    assert "\n" not in guarded("a\nb") and guarded("a\x00b\u202e") == "a\\x00b\\u202e"


EXPORT = """\
Student,ID,SIS User ID,SIS Login ID,Section,Quiz (11),Week 3 (22),Final Score
,,,,,,Manual Posting,
    Points Possible,,,,,10,4,(read only)
"Lovelace, Ada",101,s1,ada,A,7,,90
"Noether, Emmy",102,s2,emmy@x.edu,A,8,1,80
"Gauß, Carl",103,s3,carl,A,9,,70
"Müller, Eva",104,s4,eva,A,,,60
"Müller, Eva",105,s5,eva2,A,,,60
"=cmd()",106,s6,=cmd,A,,,50
"Student, Test",107,,test,A,,,
"""


def test_the_instructors_export_is_filled_and_nothing_else_changes(tmp_path, file):
    path = tmp_path / "export.csv"
    path.write_text("\ufeff" + EXPORT, "utf-8")
    items = [
        graded("101", 3, 0, name="lovelaceada", ids=(("ID", "101"),)),  # by the number in Canvas
        graded("EMMY@x.edu", 0, 1, ids=(("SIS Login ID", "EMMY@x.edu"),)),  # by login
        graded("123456", 0, 0, name="Carl Gauß"),  # by name, either way round
        graded("123457", name="Eva Müller"),  # two have this name
        graded("zed"),
    ]
    filled = fill_gradebook(path, items, WORK, given(items, path=file))
    before, after = rows(EXPORT), rows(filled.text)
    assert filled.text.startswith("\ufeff") and (filled.column, filled.new, filled.note) == ("Week 3 (22)", False, "")
    assert [row[6] for row in after] == ["Week 3 (22)", "Manual Posting", "4", "3", "1", "0", "", "", "", ""]
    changed = {(i, j) for i, row in enumerate(after) for j, cell in enumerate(row) if cell != before[i][j]}
    assert changed == {(3, 6), (5, 6), (8, 0), (8, 3)}
    assert after[8][:4] == ["'=cmd()", "106", "s6", "'=cmd"]
    assert filled.missing == ("Müller, Eva", "Müller, Eva", "=cmd()")
    assert filled.unknown == ("123457", "zed")
    assert filled.names["101"] == "Lovelace, Ada"


def test_a_column_is_added_where_there_is_none_and_semicolons_stay(tmp_path, file):
    path = tmp_path / "export.csv"
    text = "Student;ID;SIS Login ID;Section;Quiz (1)\n    Points Possible;;;;10\nLovelace, Ada;101;ada;A;7\n"
    path.write_text(text, "utf-8")
    items = [graded("ada", 3, 0, ids=(("", "ada"),))]
    filled = fill_gradebook(path, items, WORK, given(items, path=file))
    assert filled.new and filled.text.splitlines() == [
        "Student;ID;SIS Login ID;Section;Quiz (1);Week 3",
        "    Points Possible;;;;10;4",
        "Lovelace, Ada;101;ada;A;7;3",
    ]


def test_students_who_could_be_the_same_are_left_alone(tmp_path, file):
    path = tmp_path / "export.csv"
    path.write_text(EXPORT, "utf-8")
    items = [
        graded("901", name="Carl Gauß"),
        graded("902", name="Gauß, Carl"),
        graded("102", name="nobody"),  # a participant of Moodle, not the number in Canvas
        graded("903", name="Ada Lovelace"),
        graded("ada", name="ada", ids=(("", "ada"),)),  # the login says it; the name of 903 does not take it away
        graded("s4", name="Eva", ids=(("SIS User ID", "s4"),)),
    ]
    filled = fill_gradebook(path, items, WORK, given(items, path=file))
    assert filled.names == {"ada": "Lovelace, Ada", "s4": "Müller, Eva"}
    assert filled.unknown == ("901", "902", "102", "903")


def test_other_points_possible_in_canvas_are_said(tmp_path, file):
    path = tmp_path / "export.csv"
    path.write_text(EXPORT.replace(",10,4,", ",10,100,"), "utf-8")
    filled = fill_gradebook(path, [], WORK, {})
    assert filled.note == "Canvas has 100 points possible; the assignment has 4"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "Name,ID\n", '"Student,ID'])
def test_what_is_no_export_is_said(text, tmp_path):
    path = tmp_path / "export.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(GradebookError, match="not a gradebook that Canvas exported"):
        fill_gradebook(path, [], WORK, {})
    with pytest.raises(GradebookError, match="cannot read"):
        fill_gradebook(tmp_path / "missing.csv", [], WORK, {})


def test_adjustments(file):
    work = Work("Week 3", ASSIGNED, WORK.seeds, True, (QUESTION,))
    items = [
        graded("ann", 0, 1),
        graded("bob", late=True),
        graded("cyd", late=True),
        graded("dan"),
        graded("eve"),
        graded("fay", late=True),
    ]
    found = given(
        items,
        "override,ann,gqa/repeat_kv,2,partly right\nmanual,ann,essay,\"3,5\",\nlate,*,,10%,\nlate,cyd,,0%,ill\n"
        "late,dan,,50,\noverride,eve,,1,\nexcuse,fay,,,\n# late,ann,,90%,\n,,,,\nmanual,bob,essay,,not yet\n",
        work,
        file,
    )  # fmt: skip
    assert {student: mark.points for student, mark in found.items()} == {
        "ann": 6.5,
        "bob": 3.6,
        "cyd": 4,
        "dan": 2,
        "eve": 1,
        "fay": None,
    }
    assert found["ann"].exercises == {"gqa/repeat_kv": 2, "gqa/pool_heads": 1}
    assert found["ann"].notes == ("gqa/repeat_kv: 2 points, set by the instructor.",)
    assert found["bob"].notes == ("Handed in late: 10% of 4 points are lost.",)
    assert found["bob"].manual == {"essay": None} and found["ann"].manual == {"essay": 3.5}
    assert rows(new_gradebook(items, work, found))[-1][-1] == "EX"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("bonus,ann,,1", "'bonus' is none of override, manual, late, excuse"),
        ("override,ann,gqa/no,1", "there is no exercise 'gqa/no'"),
        ("override,ann,gqa/repeat_kv,lots", "'lots' is not a number of points"),
        ("override,ann,gqa/repeat_kv,-1", "'-1' is not a number of points"),
        ("override,,gqa/repeat_kv,1", "needs a student"),
        ("override,*,gqa/repeat_kv,1", "needs a student"),
        ("manual,ann,essay,6", "question essay has 5 points, not 6"),
        ("manual,ann,other,1", "there is no question 'other'; the assignment has essay"),
        ("late,*,,0.1", "write 10% for a tenth"),
        ("late,*,,200%", "write 10% for a tenth"),
        ("late,*,,soon", "is no share"),
    ],
)
def test_an_adjustment_that_is_not_understood_is_said_with_its_line(row, words, file):
    work = Work("Week 3", ASSIGNED, WORK.seeds, True, (QUESTION,))
    with pytest.raises(GradebookError, match="nothing was graded") as raised:
        given([], f"# a comment\n{row}\n", work, file)
    assert f"line 3: {words}" in str(raised.value) or ("line 3: " in str(raised.value) and words in str(raised.value))


def test_the_template_changes_nothing_and_is_written_once(file):
    work = Work("Week 3", ASSIGNED, WORK.seeds, True, (QUESTION,))
    items = [graded("ann"), graded("=bob")]
    write_template(file, [item.submission for item in items], work)
    text = file.read_text("utf-8")
    assert read_adjustments(file, work).students == set()
    assert "manual,ann,essay,,of 5\n" in text and "manual,'=bob,essay,,of 5\n" in text
    file.write_text(text.replace("'=bob,essay,,", "'=bob,essay,4,"), "utf-8")
    write_template(file, [], work)
    assert marks(items, work, read_adjustments(file, work))["=bob"].points == 8
    assert [path.name for path in file.parent.iterdir()] == ["adjustments.csv"]


def test_a_folder_keeps_to_one_assignment(tmp_path):
    public = replace(WORK, title="found in notebooks", hidden=False)
    for first, other, words in (
        (WORK, replace(WORK, title="Week 4"), "'Week 3', and this is 'Week 4'"),
        (WORK, public, "'Week 3', and without --key"),
        (public, WORK, "grades made without a key, and this is 'Week 3'"),
    ):
        (tmp_path / ".assignment").unlink(missing_ok=True)
        keep_to(tmp_path, first)
        keep_to(tmp_path, first)
        with pytest.raises(GradebookError, match=words):
            keep_to(tmp_path, other)
    (tmp_path / ".assignment").unlink()
    keep_to(tmp_path, public)
    keep_to(tmp_path, replace(public, title="found in more notebooks"))  # it may change from run to run


def test_a_spreadsheet_may_have_saved_the_adjustments(file):
    file.write_bytes(
        "what;student;exercise;points;note\r\noverride;josé;gqa/repeat_kv;2,5;très bien\r\n".encode("cp1252")
    )
    assert read_adjustments(file, WORK).overrides == {("josé", "gqa/repeat_kv"): 2.5}
