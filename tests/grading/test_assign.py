"""An assignment: what is chosen, what students and instructors get, and that no secret is where it must not be."""

import base64
import csv
import io
import json
import os
import re
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from attncourse.checks import CHAPTERS, evaluate, exercise, exercises
from attncourse.checks.spec import Exercise
from attncourse.cli import main
from attncourse.grading import assign as assigning
from attncourse.grading import bundle, handout
from attncourse.grading.assign import AssignError, Question, assign, choose, question, read_questions
from attncourse.grading.handout import Chapter, Links, cleared
from attncourse.grading.key import Assigned, Key, KeyFileError
from tests.grading.leaks import leaks

ROOT = Path(__file__).parents[2]
WHAT = ["5", "gqa", "positions/rotary_scores", "multi_head/all_heads", "multi_head/split_into_heads"]
QUESTIONS = [
    Question("", "Why is a mask boolean?", 4.0, "5"),
    Question("essay", "What does a window lose?\nSay it.", 2.5),
]
VARIED = [(spec.id, name) for spec in exercises() if isinstance(spec, Exercise) for name in spec.variants]
CHAPTERS_VARIED = [name for name in CHAPTERS if any(id.startswith(f"{name}/") for id, _ in VARIED)]
pytestmark = pytest.mark.xdist_group("assign")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A stand-in for the package, which takes seconds to build."""
    path = tmp_path_factory.mktemp("wheel") / "attncourse-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("attncourse/__init__.py", "")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, wheel):
    folder = tmp_path_factory.mktemp("course")
    return assign(
        WHAT, "Week 3", folder / "key", folder / "out", variants=True, questions=QUESTIONS, wheel=wheel
    ), Key.open(folder / "key")  # fmt: skip


def chapter(name, variants=True, only=None):
    """A chapter with all its exercises, in their variants."""
    picked = {}
    for task in exercises(name):
        if only is None or task.id in only:
            names = sorted(task.variants) if variants and isinstance(task, Exercise) else []
            picked[task.id.split("/")[1]] = Assigned(task.id, names[0] if names else None, task.points)
    return Chapter(exercises(name)[0].chapter, picked)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def books(made):
    """The notebooks that students get, by name."""
    files = members(made.handout)
    return {Path(name).stem: json.loads(data) for name, data in files.items() if name.endswith(".ipynb")}


def run_cells(book):
    """What a notebook's code cells define, run from top to bottom."""
    defined = {"__name__": "__main__"}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), defined)
    return defined


def text_of(book, id):
    return next("".join(cell["source"]) for cell in book["cells"] if cell["id"] == id)


# What is chosen


def test_chapters_and_exercises_are_chosen_in_any_mixture_and_come_in_the_books_order():
    ids = [task.id for task in choose(["13_gqa", "05", "sliding-window", "mla/absorb_query"])]
    assert ids == [task.id for name in ("causal", "sliding_window", "gqa") for task in exercises(name)] + [
        "mla/absorb_query"
    ]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (["99"], r"no chapter 99; they are numbered 0 to 17"),
        (["gqua"], r"no chapter 'gqua'; did you mean gqa"),
        (["gqa/repeat_vk"], r"no exercise 'gqa/repeat_vk'; did you mean gqa/repeat_kv"),
        (["gqqa/repeat_kv"], r"no exercise 'gqqa/repeat_kv'; did you mean gqa"),
        (["13", "gqa/repeat_kv"], r"gqa/repeat_kv is named by '13' and by 'gqa/repeat_kv'"),
        (["gqa/repeat_kv", "gqa/repeat_kv"], "named twice"),
        (["5", "causal"], "named by '5' and by 'causal'"),
        ([], "nothing is assigned"),
        (["../../etc"], "no exercise"),
    ],
)
def test_what_cannot_be_chosen_is_said_with_what_is_near(what, words):
    with pytest.raises(AssignError, match=words):
        choose(what)


# Variants


@pytest.mark.parametrize(("id", "variant"), VARIED)
def test_every_change_of_a_variants_text_finds_its_place(id, variant):
    whole, slug = chapter(id.split("/")[0]), id.split("/")[1]
    task, answer = whole.cells[f"{slug}-task"], whole.cells[f"{slug}-answer"]
    for old, new in handout._variants()[id][variant]["changes"]:
        assert old in task or old in answer, old
        task, answer = task.replace(old, new), answer.replace(old, new)


def test_every_text_belongs_to_a_variant():
    assert [(id, name) for id, names in handout._variants().items() for name in names] == VARIED


@pytest.mark.parametrize(
    ("name", "variants"), [(name, False) for name in CHAPTERS] + [(name, True) for name in CHAPTERS_VARIED]
)
def test_the_reference_is_right_in_every_variant_and_a_student_gets_none_of_it(name, variants):
    whole = chapter(name, variants)
    assert any(whole.forms.values()) == variants
    defined = run_cells(whole.book("Week 3", "reference", Links()))
    for assigned in whole.picked.values():
        verdict = evaluate(assigned.id, defined[exercise(assigned.id).defines], assigned.variant)
        assert verdict.passed, (assigned, verdict)
    student = json.dumps(whole.book("Week 3", "students", Links()))
    assert "SOLUTION" not in student and "solutions/" not in student and "solution-only" not in student
    for slug in whole.order:
        (cell,) = (c for c in whole.book("", "students", Links())["cells"] if c["id"] == f"{slug}-answer")
        assert "".join(cell["source"]) == cleared(whole.solution(slug))


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_whole_chapter_has_the_cells_of_the_published_exercises(name):
    mine = chapter(name, variants=False).book("Week 3", "students", Links())
    theirs = json.loads((ROOT / "exercises" / f"{exercises(name)[0].chapter}.ipynb").read_text("utf-8"))
    assert [c for c in mine["cells"] if c["cell_type"] == "code"] == [
        c for c in theirs["cells"] if c["cell_type"] == "code"
    ]
    for own, published in zip(mine["cells"], theirs["cells"], strict=True):
        assert own["id"] == published["id"]
        if own["id"].endswith("-task"):
            words = re.sub(r"\[([^\]]+)\]\(\.\.[^)]*\)", r"\1", "".join(published["source"]))
            assert "".join(own["source"]) == words.removesuffix("Solution").rstrip()


def test_a_variant_is_told_checked_and_kept_apart_from_what_builds_on_it():
    whole = chapter("multi_head")
    book = whole.book("Week 3", "students", Links())
    assert '"interleaved")' in text_of(book, "split_into_heads-check")
    task = text_of(book, "split_into_heads-task")
    assert "**In this copy** the heads are interleaved" in task and "neighbours all" not in task
    assert text_of(book, "all_heads-check") == 'check("multi_head/all_heads", all_heads)'
    told = "exercise 1 is under another convention, and this one is not: your `split_into_heads` does not fit here"
    assert told in text_of(book, "all_heads-task") and told not in text_of(book, "join_heads-task")
    assert "exercise 1 is under another convention than in the chapter" in text_of(book, "title")


def test_without_variants_nothing_says_so():
    assert "In this copy" not in json.dumps(chapter("gqa", variants=False).book("Week 3", "students", Links()))


def test_single_exercises_bring_what_they_build_on_without_points():
    some = chapter("positions", only={"positions/rotary_scores"})
    book = some.book("Week 3", "students", Links())
    assert [cell["id"] for cell in book["cells"]] == ["title", "install", "setup"] + [
        f"{slug}-{part}" for slug in ("rotate_pairs", "rotary_scores") for part in ("task", "answer", "check")
    ]
    assert "| 2 Turn the pairs | ●●○ | 15 | – |" in text_of(book, "title")
    assert "1 exercise of chapter 07" in text_of(book, "title") and "slopes" not in text_of(book, "title").lower()
    assert "*Not part of this assignment" in text_of(book, "rotate_pairs-task")
    assert '"interleaved")' in text_of(book, "rotate_pairs-check")  # as the one that uses it
    graded = [c["id"] for c in book["cells"] if c["metadata"].get("nbgrader", {}).get("grade")]
    assert graded == ["rotary_scores-check"]
    defined = run_cells(some.book("Week 3", "reference", Links()))
    assert evaluate("positions/rotary_scores", defined["rotary_scores"], "interleaved").passed


# What students get


def test_students_notebooks_run_from_top_to_bottom_and_nothing_is_attempted(made, capsys):
    for book in books(made[0]).values():
        run_cells(book)
    told = capsys.readouterr().out
    assert told.count("not attempted yet") == 5 + 5 + 2 + 3 and "✗" not in told


def test_the_hand_out_has_notebooks_readme_package_and_nothing_else(made, wheel):
    files = members(made[0].handout)
    names = ["README.md", "05_causal.ipynb", "06_multi_head.ipynb", "07_positions.ipynb", "13_gqa.ipynb", wheel.name]
    assert list(files) == [f"week-3/{name}" for name in names]
    readme = files["week-3/README.md"].decode()
    assert "37.5 points in all" in readme and "| 05_causal.ipynb | 5 | 14 | 55 |" in readme
    assert "- 05_causal.ipynb: Why is a mask boolean? (4 points)" in readme and "colab" not in readme.lower()
    for book in books(made[0]).values():
        assert f'WHEEL = "{wheel.name}"' in text_of(book, "install")
        assert not re.search(r"\]\((?!https)", json.dumps(book))  # no link leads nowhere


def test_addresses_go_where_they_are_known(tmp_path, wheel):
    found = assign(
        ["gqa"], "Week 4", tmp_path / "key", tmp_path / "out", wheel=wheel,
        site="https://someone.example/course/", colab="https://github.com/someone/class/tree/main/week-4",
    )  # fmt: skip
    book = books(found)["13_gqa"]
    assert f'WHEEL = "https://github.com/someone/class/raw/main/week-4/{wheel.name}"' in text_of(book, "install")
    assert "](https://someone.example/course/notebooks/13_gqa.html)" in text_of(book, "title")
    link = "](https://colab.research.google.com/github/someone/class/blob/main/week-4/13_gqa.ipynb)"
    assert link in text_of(book, "title") and link in members(found.handout)["week-4/README.md"].decode()


def test_questions_are_cells_that_are_graded_by_hand_where_they_belong(made):
    found = books(made[0])
    for name, id, points in (("05_causal", "question-1", 4.0), ("13_gqa", "essay", 2.5)):
        cell = found[name]["cells"][-1]
        graded = cell["metadata"]["nbgrader"]
        assert cell["cell_type"] == "markdown" and graded["grade_id"] == id and graded["points"] == points
        assert graded["grade"] and graded["solution"] and not graded["locked"]
    assert "What does a window lose?\nSay it." in "".join(found["13_gqa"]["cells"][-2]["source"])
    assert [q["title"] for q in made[1].assignment().questions] == [
        "Why is a mask boolean?",
        "What does a window lose?",
    ]


def test_the_checksums_are_nbgraders(made):
    import nbformat
    from nbgrader.utils import compute_checksum

    for book in books(made[0]).values():
        notebook = nbformat.from_dict(json.loads(json.dumps(book)))
        nbformat.validate(notebook)
        for cell in notebook.cells:
            cell.source = "".join(cell.source)
            if "nbgrader" in cell.metadata:
                assert cell.metadata.nbgrader.checksum == compute_checksum(cell)


# Secrets


def test_the_secret_and_the_seeds_are_in_nothing_that_a_student_gets(made):
    assert leaks(made[0].handout.read_bytes(), made[1]) == set()


def test_the_secret_is_nowhere_but_where_the_name_says_so(made):
    for path in sorted(made[0].bundle.rglob("*")):
        if path.is_file():
            found = leaks(path.read_bytes(), made[1], path.name)
            assert bool(found) == ("SECRET" in path.name), path
    (secret,) = made[0].bundle.glob("*SECRET*")
    assert leaks(secret.read_bytes(), made[1], "zip") == {"zip:instructor.key"}
    assert "give it\nto nobody" in members(secret)["SECRET.md"].decode()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and stat.S_IMODE(made[0].bundle.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "write",
    [
        bytes.hex,
        lambda raw: str(int.from_bytes(raw, "big")),
        lambda raw: base64.b64encode(b"ab" + raw + b"cd").decode(),
    ],
)
def test_the_scan_finds_a_seed_that_was_left_in(made, write):
    seed = made[1].seeds("week-3", "gqa/repeat_kv")[1].to_bytes(8, "big")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", f"some text {write(seed)} and more")
    assert leaks(inner.getvalue(), made[1]) == {":a/b.txt"}


# What instructors get


def test_points_and_assignment_are_told_with_all_that_is_in_them(made):
    rows = list(csv.DictReader(io.StringIO((made[0].bundle / "points.csv").read_text("utf-8"))))
    assert rows[-1]["points"] == "37.5" and len(rows) == 13 + 2 + 1
    assert sum(float(row["points"]) for row in rows[:-1]) == 37.5
    assert [row["variant"] for row in rows if row["exercise"] == "gqa/repeat_kv"] == ["tiled"]
    data = json.loads((made[0].bundle / "assignment.json").read_text("utf-8"))
    assert data["id"] == "week-3" and data["exercises"][0]["variant"] == "forbid" and "secret" not in data
    told = {"id": "essay", "title": "What does a window lose?", "points": 2.5, "text": QUESTIONS[1].text}
    assert data["questions"][1] == told | {"notebook": "13_gqa.ipynb"}
    readme = (made[0].bundle / "README.md").read_text("utf-8")
    assert "| causal/look_back_mask |" in readme and "@" not in re.sub(r"`[^`]*`", "", readme)


def test_a_key_is_for_what_it_says_and_the_assignment_is_noted_in_it(made):
    assignment = made[1].assignment()
    assert assignment == made[0].assignment and assignment.id == "week-3" and assignment.title == "Week 3"
    assert {e.id: e.variant for e in assignment.exercises if e.variant} == {
        "causal/look_back_mask": "forbid",
        "multi_head/split_into_heads": "interleaved",
        "positions/rotary_scores": "interleaved",
        "gqa/repeat_kv": "tiled",
    }


def test_the_package_is_built_whole_and_the_checkout_stays_as_it_is(built_wheel):
    wheel, news = built_wheel
    names = set(members(wheel))
    assert {"attncourse/grading/assign.py", "attncourse/data/variants.toml", "attncourse/data/assign/setup.sh"} <= names
    assert not news


def test_the_workflow_opens_user_namespaces_and_its_steps_are_shell(made):
    text = (made[0].bundle / "github" / ".github" / "workflows" / "grade.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    assert workflow[True] == "push" and workflow["permissions"] == {"contents": "read"}  # YAML reads `on` as True
    steps = workflow["jobs"]["grade"]["steps"]
    runs = [step["run"] for step in steps if "run" in step]
    assert [i for i, run in enumerate(runs) if "apparmor_restrict_unprivileged_userns=0" in run] == [1]
    assert "attncourse grade" in runs[2] and len(runs) == 3
    for run in runs:
        subprocess.run(["bash", "-n"], input=run, text=True, check=True)
        assert "${{" not in run  # nothing from outside becomes shell


def test_the_autograders_scripts_are_shell_and_pin_what_they_install(made):
    (path,) = made[0].bundle.glob("*gradescope*")
    files = members(path)
    for name in ("setup.sh", "run_autograder"):
        subprocess.run(["bash", "-n"], input=files[name], check=True)
    assert b"torch==" in files["setup.sh"] and b"@" not in files["setup.sh"].replace(b'"$@"', b"")
    assert all("==" in line for line in files["requirements.txt"].decode().splitlines())
    with zipfile.ZipFile(path) as archive:
        modes = {member.filename: member.external_attr >> 16 & 0o777 for member in archive.infolist()}
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755 and modes["instructor.key"] == 0o600


# What is refused, and what is left behind then


def state(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"title": " … "}, "is no title"),
        ({"title": "Week\n3"}, "is no title"),
        ({"what": ["gqua"]}, "did you mean gqa"),
        ({"out": "full"}, r"full is not empty \(a file\)"),
        ({"out": "full/a file"}, "is a file; name a folder"),
        ({"key": "open"}, r"others can read .*chmod 600"),
        ({"key": "full/a file"}, "is no key of this course"),
        ({"key": "nowhere/key"}, "there is no folder"),
        ({"key": "new/key"}, "must not lie in"),
        ({"colab": "https://elsewhere.example/x"}, "no folder on GitHub"),
        ({"site": "ftp://x"}, "must begin with https"),
        ({"torch": 'torch"; rm x'}, "as it is"),
        ({"questions": [Question("a", "x", 1.0), Question("a", "y", 1.0)]}, "two questions have the id 'a'"),
        ({"questions": [Question("a", "x", 1.0, "mla")]}, "chapter mla, which is not assigned"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused_and_nothing_changes(tmp_path, wheel, change, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").write_text("{}")
    (tmp_path / "full" / "a file").chmod(0o600)
    Key.make(tmp_path / "open")
    (tmp_path / "open").chmod(0o644)
    before = state(tmp_path)
    settings = {"what": ["gqa"], "title": "Week 3", "key": "key", "out": "new", "wheel": wheel} | change
    what, title, key, out = (settings.pop(name) for name in ("what", "title", "key", "out"))
    with pytest.raises((AssignError, KeyFileError), match=words):
        assign(what, title, tmp_path / key, tmp_path / out, **settings)
    assert state(tmp_path) == before


def test_without_the_courses_notebooks_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(handout.attncourse, "__file__", str(tmp_path / "attncourse" / "__init__.py"))
    with pytest.raises(AssignError, match="in a clone of the course"):
        assign(["gqa"], "Week 3", tmp_path / "key", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["github", "nbgrader", "rename", "add"])
@pytest.mark.parametrize("had_key", [False, True])
def test_what_fails_half_way_leaves_nothing(tmp_path, wheel, monkeypatch, where, had_key):
    if had_key:
        assign(["gqa"], "Week 1", tmp_path / "key", tmp_path / "one", wheel=wheel)
    before = state(tmp_path)
    renamed = []

    def fail(*arguments, **named):
        if where == "rename" and not renamed:
            renamed.append(Path(arguments[0]).replace(arguments[1]))
            return None
        raise OSError(28, "No space left on device")

    if where == "add":
        monkeypatch.setattr(Key, "add", fail)
    else:
        monkeypatch.setattr(assigning.os if where == "rename" else bundle, where, fail)
    with pytest.raises(OSError, match="No space"):
        assign(["gqa"], "Week 3", tmp_path / "key", tmp_path / "new" / "er", wheel=wheel)
    (tmp_path / "new").rmdir() if (tmp_path / "new").exists() else None
    assert state(tmp_path) == before


def test_the_same_again_gives_the_same_and_another_of_that_title_is_refused(tmp_path, wheel):
    def again(out, what=("gqa",), variants=True):
        return assign(what, "Week 3", tmp_path / "key", tmp_path / out, variants=variants, wheel=wheel)

    first = again("one")
    kept = (tmp_path / "key").read_bytes()
    assert again("two").handout.read_bytes() == first.handout.read_bytes()
    assert (tmp_path / "key").read_bytes() == kept and not again("three").new_key
    with pytest.raises(AssignError, match="has an assignment 'week-3' already"):
        again("four", variants=False)
    with pytest.raises(AssignError, match="has an assignment 'week-3' already"):
        again("five", what=("mla",))
    assert not (tmp_path / "four").exists()


def test_an_empty_folder_will_do(tmp_path, wheel):
    (tmp_path / "out").mkdir()
    assert assign(["gqa/repeat_kv"], "Ünï 3!", tmp_path / "key", tmp_path / "out", wheel=wheel).handout.name == (
        "uni-3-students.zip"
    )


# Questions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.json", '[{"text": "Why?", "points": 4, "id": "why", "chapter": "gqa"}, {"text": "How?", "points": 0.5}]'),
        ("q.yml", "- text: Why?\n  points: 4\n  id: why\n  chapter: gqa\n- {text: 'How?', points: 0.5}\n"),
        ("q.yaml", 'questions:\n- {text: "Why?", points: "4", id: why, chapter: gqa}\n- {text: "How?", points: .5}\n'),
    ],
)
def test_questions_are_read_from_yaml_and_json(tmp_path, name, text):
    (tmp_path / name).write_text(text, "utf-8")
    assert read_questions(tmp_path / name) == [Question("why", "Why?", 4.0, "gqa"), Question("", "How?", 0.5)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no YAML"),
        ("3", "no list of questions"),
        ("- Why?", "question 1 of .* must have text and points"),
        ("- {text: Why}", "must have text and points"),
        ("- {text: Why, points: 3, weight: 2}", "must have text and points"),
        ("- {text: Why, points: many}", "must be a number above 0, not 'many'"),
        ("- {text: Why, points: -1}", "must be a number above 0"),
        ("- {text: Why, points: .nan}", "must be a number above 0"),
        ("- {text: ' ', points: 1}", "has no text"),
        ("- {text: Why, points: 1, id: a b}", "is no id"),
        ("- !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_questions_that_are_none_are_refused(tmp_path, text, words):
    (tmp_path / "q.yml").write_text(text, "utf-8")
    with pytest.raises(AssignError, match=words):
        read_questions(tmp_path / "q.yml")
    with pytest.raises(AssignError, match="cannot read the questions"):
        read_questions(tmp_path / "none.yml")


def test_points_of_a_question_are_a_number():
    with pytest.raises(AssignError, match="not True"):
        question("Why?", True)


# The command line, and grading with the key


def cli(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stopped:
        return stopped.code


def test_wrong_usage_says_what_is_missing(tmp_path, capsys):
    key = ("--key", tmp_path / "key", "--out", tmp_path / "out")
    assert cli("assign", "gqa", *key) == 2 and "--title" in capsys.readouterr().err
    assert cli("assign", "gqua", *key, "--title", "Week 3") == 2 and "did you mean gqa?" in capsys.readouterr().err
    assert cli("assign", "gqa", *key, "--title", "Week 3", "--question", "Why?") == 2
    assert "1 times --question and 0 times --points" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_assigned_is_graded_with_the_key_and_its_questions_wait_for_points(
    tmp_path, wheel, capsys, monkeypatch
):
    monkeypatch.setattr(bundle, "build_wheel", lambda course, folder: wheel)
    key, out = tmp_path / "key", tmp_path / "out"
    command = ["gqa", "multi_head/all_heads", "multi_head/split_into_heads", "--title", "Week 3", "--key", key]
    assert cli("assign", *command, "--out", out, "--variants", "--question", "Why?", "--points", "4") == 0
    told = capsys.readouterr().out
    assert "7 exercises, 1 question, 19 points" in told and "gqa/repeat_kv in its variant tiled" in told
    with zipfile.ZipFile(out / "week-3-students.zip") as archive:
        archive.extractall(tmp_path / "class")
    os.rename(tmp_path / "class" / "week-3", tmp_path / "class" / "fresh")
    os.rename(out / "week-3-instructors" / "reference", tmp_path / "class" / "solved")
    assert cli("grade", tmp_path / "class", "--key", key, "--out", tmp_path / "grades", "--workers", "1") == 0
    scores = {p.stem: json.loads(p.read_text("utf-8"))["score"] for p in (tmp_path / "grades" / "results").iterdir()}
    assert sorted(scores.values()) == [0, 15], scores
    adjustments = (tmp_path / "grades" / "adjustments.csv").read_text("utf-8")
    assert "manual,fresh,question-1,,of 4" in adjustments and "manual,solved,question-1,,of 4" in adjustments
