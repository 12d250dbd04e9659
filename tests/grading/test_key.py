"""The instructor's key: kept secret, made once, and always giving the same seeds and choices."""

import json
import os
import stat

import pytest

from attncourse.checks import exercises
from attncourse.checks.judge import ask, judge
from attncourse.checks.spec import Exercise
from attncourse.grading.key import Assigned, Assignment, Key, KeyFileError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "course.key"


def week(id, *exercises, **more):
    return Assignment(id, id.title(), "2026-09-01", tuple(exercises), **more)


def test_a_key_is_its_owners_alone_and_survives_reading(path):
    key = Key.make(path)
    key.add(
        week("week-1", Assigned("gqa/repeat_kv", None, 3), questions=({"id": "q", "title": "Why?", "points": 2.0},))
    )
    key.add(week("week-2", Assigned("gqa/pool_heads", None, 1)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Key.open(path)
    assert again.assignments == key.assignments
    assert again.assignment().id == "week-2" and again.assignment("week-1").exercises[0].points == 3
    assert again.seeds("week-1", "gqa/repeat_kv") == key.seeds("week-1", "gqa/repeat_kv")
    assert json.loads(path.read_text("utf-8"))["secret"] not in repr(again)
    assert [p.name for p in path.parent.iterdir()] == ["course.key"]


def test_a_key_is_never_overwritten(path):
    Key.make(path)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        Key.make(path)
    assert path.read_bytes() == before


def test_seeds_depend_on_everything_and_differ_by_turn(path):
    one, other = Key.make(path), Key.make(path.with_name("other.key"))
    seeds = {
        key.seeds(week, exercise)
        for key in (one, other)
        for week in ("week-1", "week-2")
        for exercise in ("gqa/repeat_kv", "gqa/pool_heads")
    }
    assert len(seeds) == 8 and len({seed for pair in seeds for seed in pair}) == 16
    for first, second in seeds:
        assert 0 <= first < 2**63 and 0 <= second < 2**63 and (second - first) % 4 == 1
    assert one.seeds("a", "bc") != one.seeds("ab", "c")


def test_choices_are_stable_and_cover_the_options(path):
    key = Key.make(path)
    chosen = [key.choose("abc", "week-1", f"student {i}") for i in range(100)]
    assert chosen == [Key.open(path).choose("abc", "week-1", f"student {i}") for i in range(100)]
    assert set(chosen) == set("abc")
    with pytest.raises(ValueError, match="options is empty"):
        key.choose([], "week-1")


UNKNOWN = {"id": "a", "title": "", "exercises": [{"id": "no/such", "points": 1}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no key"),
        ("[]", "is no key"),
        ('{"secret": "zz", "assignments": []}', "is no key"),
        ('{"secret": "00", "assignments": []}', "has 1 bytes, but it must have 32"),
        ('{"secret": "%s"}' % ("00" * 32), "is no key"),
        (json.dumps({"secret": "00" * 32, "assignments": [UNKNOWN]}), "there is no exercise"),
    ],
)
def test_what_is_no_key_is_said(path, text, words):
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=words):
        Key.open(path)


def test_a_key_that_others_can_read_is_refused(path):
    Key.make(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"mode 644.*chmod 600"):
        Key.open(path)


def test_what_is_missing_is_said(path):
    with pytest.raises(KeyFileError, match="there is no key"):
        Key.open(path)
    with pytest.raises(KeyFileError, match="cannot write"):
        Key.make(path / "no" / "folder")
    key = Key.make(path)
    with pytest.raises(KeyFileError, match="no assignment yet"):
        key.assignment()
    key.add(week("week-1", Assigned("gqa/repeat_kv", None, 3)))
    with pytest.raises(KeyFileError, match="it has week-1"):
        key.assignment("week-9")
    with pytest.raises(KeyFileError, match="already"):
        key.add(week("week-1"))
    with pytest.raises(ValueError, match="variant"):
        key.add(week("week-2", Assigned("gqa/repeat_kv", "sideways", 3)))
    assert len(Key.open(path).assignments) == 1


def test_a_failed_save_keeps_the_old_key(path, monkeypatch):
    key = Key.make(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        key.add(week("week-1", Assigned("gqa/repeat_kv", None, 3)))
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


LARGE = [spec for spec in exercises() if isinstance(spec, Exercise)]


@pytest.mark.parametrize("spec", LARGE, ids=lambda spec: spec.id)
def test_every_exercise_takes_seeds_of_63_bits(spec):
    question = ask(spec, (2**63 - 1, 2**63 - 4))
    assert judge(spec, question, question.expected).passed
