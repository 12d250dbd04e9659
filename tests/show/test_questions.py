"""Recall questions: what the file must hold, and what stands in the page."""

import copy
import json
from pathlib import Path

import pytest

from attncourse import show

DATA = Path(show.__file__).parents[1] / "data" / "questions"
EXAMPLE = {
    "questions": [
        {
            "id": "rows",
            "prompt": "What does each row of `softmax(scores)` add up to?",
            "options": [
                {"text": "1", "feedback": "It is a distribution over the keys.", "correct": True},
                {"text": "S", "feedback": "That would be a sum of ones, not of <weights>."},
            ],
        },
        {
            "id": "shape",
            "prompt": "Which has the shape (B, T, S)?",
            "options": [
                {"text": "the context", "feedback": "It is (B, T, Dv)."},
                {"text": "the `values`", "feedback": "They are (B, S, Dv)."},
                {"text": "the weights", "feedback": "One for each query and key.", "correct": True},
            ],
        },
    ]
}


def ask(folder, record) -> show.Output:
    (folder / "example.json").write_text(json.dumps(record), encoding="utf-8")
    return show.questions("example", folder=folder)


def test_both_forms(tmp_path):
    output = ask(tmp_path, EXAMPLE)
    html = output._repr_mimebundle_()["text/html"]
    assert output.data == {"correct": [0, 2]}
    assert "<code>softmax(scores)</code>" in html and "not of &lt;weights&gt;" in html
    assert html.count("<details>") == 2 and "The answer is <b>C</b>." in html
    assert repr(output).startswith(
        "1. What does each row of `softmax(scores)` add up to?\n  A. 1\n  B. S\n  Answer: A."
    )


@pytest.mark.parametrize("name", [file.stem for file in sorted(DATA.glob("*.json"))])
def test_the_right_answers_do_not_all_stand_in_one_place(name):
    assert len(set(show.questions(name).data["correct"])) > 1


def test_unknown_name():
    with pytest.raises(ValueError, match="no questions called 'nowhere'"):
        show.questions("nowhere")


def broken(change) -> dict:
    record = copy.deepcopy(EXAMPLE)
    change(record["questions"])
    return record


@pytest.mark.parametrize(
    "record, message",
    [
        ({}, r"example\.json, top level: lacks \['questions'\]"),
        ([], "top level: must be an object"),
        ({"questions": []}, "must be a list, not empty"),
        (broken(lambda q: q[1].pop("prompt")), r"questions\[1\]: lacks \['prompt'\]"),
        (broken(lambda q: q[1].update(hint="x")), r"questions\[1\]: has unknown keys \['hint'\]"),
        (broken(lambda q: q[1].update(id="rows")), r"questions\[1\]\.id: 'rows' is used twice"),
        (broken(lambda q: q[0].update(prompt=" ")), r"questions\[0\]\.prompt: must be a text"),
        (broken(lambda q: q[0]["options"].pop()), r"questions\[0\]\.options: must be a list of 2 to 8"),
        (broken(lambda q: q[0]["options"][1].pop("feedback")), r"options\[1\]: lacks \['feedback'\]"),
        (broken(lambda q: q[0]["options"][1].update(correct="no")), r"options\[1\]\.correct: must be true or false"),
        (broken(lambda q: q[0]["options"][1].update(correct=True)), "exactly one .* but 2 have"),
        (broken(lambda q: q[0]["options"][0].pop("correct")), "exactly one .* but 0 have"),
    ],
)
def test_errors_name_the_place(tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        ask(tmp_path, record)
