"""Questions that the reader answers first: recall questions with feedback, and predictions before a reveal."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from attncourse.show.html import Output, fragment, prose, require_text

LETTERS = "ABCDEFGH"


def questions(name: str, *, folder: Path | None = None) -> Output:
    """The recall questions of `data/questions/<name>.json`: native radio buttons, and feedback for each option.

    The file: {"questions": [{"id", "prompt", "options": [{"text", "feedback", "correct": true on one of them}]}]}.
    In its texts `backquotes` set code; mathematics is plain Unicode (d_k, √d, ×). Without scripts the answer and
    the feedback stand in a disclosure. Raises ValueError, with the place in the file, where it does not fit.
    """
    path = (folder or files("attncourse") / "data" / "questions") / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"there are no questions called {name!r}: {path} does not exist")
    records = check_questions(json.loads(path.read_text(encoding="utf-8")), path.name)
    items, texts, correct = [], [], []
    for n, question in enumerate(records, 1):
        options = question["options"]
        right = next(i for i, option in enumerate(options) if option.get("correct"))
        correct.append(right)
        listed = "".join(f"<li>{prose(option['text'])}</li>" for option in options)
        feedback = "".join(
            f"<li><b>{'Right' if i == right else 'Wrong'}.</b> <span>{prose(option['feedback'])}</span></li>"
            for i, option in enumerate(options)
        )
        count = f"Question {n} of {len(records)}"
        items.append(
            f'<div class="ac-question"><div class="ac-static"><p class="ac-dim">{count}</p>'
            f'<p class="ac-prompt">{prose(question["prompt"])}</p><ol class="ac-options" type="A">{listed}</ol>'
            f"<details><summary>Answer to question {n}</summary><p>The answer is <b>{LETTERS[right]}</b>.</p>"
            f'<ol class="ac-feedback" type="A">{feedback}</ol></details></div></div>'
        )
        lines = [f"  {LETTERS[i]}. {option['text']}" for i, option in enumerate(options)]
        answer = f"  Answer: {LETTERS[right]}. {options[right]['feedback']}"
        texts.append("\n".join([f"{n}. {question['prompt']}", *lines, answer]))
    data = {"correct": correct}
    html = fragment("".join(items), kind="questions", piece="questions", script="recall.js", data=data)
    return Output("\n\n".join(texts), html, data)


def check_questions(record: Any, where: str) -> list[dict]:
    """The list of questions in `record`, or ValueError with the place and what was expected there."""

    def demand(fits: bool, place: str, expected: str) -> None:
        if not fits:
            raise ValueError(f"{where}, {place}: {expected}")

    def text(value: Any, place: str) -> None:
        demand(isinstance(value, str) and bool(value.strip()), place, f"must be a text, not {value!r}")

    def keys(value: Any, place: str, required: set[str], optional: frozenset[str] = frozenset()) -> None:
        demand(isinstance(value, dict), place, f"must be an object with the keys {sorted(required)}")
        lacks, unknown = required - set(value), set(value) - required - optional
        demand(not lacks, place, f"lacks {sorted(lacks)}")
        demand(not unknown, place, f"has unknown keys {sorted(unknown)}")

    keys(record, "top level", {"questions"})
    demand(isinstance(record["questions"], list) and record["questions"], "questions", "must be a list, not empty")
    seen = set()
    for n, question in enumerate(record["questions"]):
        place = f"questions[{n}]"
        keys(question, place, {"id", "prompt", "options"})
        text(question["id"], f"{place}.id")
        text(question["prompt"], f"{place}.prompt")
        demand(question["id"] not in seen, f"{place}.id", f"{question['id']!r} is used twice")
        seen.add(question["id"])
        options = question["options"]
        fits = isinstance(options, list) and 2 <= len(options) <= len(LETTERS)
        demand(fits, f"{place}.options", f"must be a list of 2 to {len(LETTERS)} options")
        for i, option in enumerate(options):
            keys(option, f"{place}.options[{i}]", {"text", "feedback"}, frozenset({"correct"}))
            text(option["text"], f"{place}.options[{i}].text")
            text(option["feedback"], f"{place}.options[{i}].feedback")
            correct = option.get("correct", False)
            demand(
                isinstance(correct, bool), f"{place}.options[{i}].correct", f"must be true or false, not {correct!r}"
            )
        n_correct = sum(bool(option.get("correct")) for option in options)
        demand(n_correct == 1, f"{place}.options", f"exactly one must have correct: true, but {n_correct} have")
    return record["questions"]


def predict(prompt: str, answer: str, *, options: Sequence[str] | None = None) -> Output:
    """A question to commit to before running on: the reader writes a guess (or chooses one of `options`), then reveals.

    prompt and answer may hold `code`. The guess is shown beside the answer and kept nowhere. Without scripts the
    answer stands in a disclosure.
    """
    require_text(prompt=prompt, answer=answer)
    if options is not None and len(options) < 2:
        raise ValueError(f"options={options!r}, but there must be at least two to choose from")
    listed = "".join(f"<li>{prose(option)}</li>" for option in options or ())
    body = (
        f'<div class="ac-static"><p class="ac-dim">Predict first</p><p class="ac-prompt">{prose(prompt)}</p>'
        f"{f'<ul class=ac-options>{listed}</ul>' if listed else ''}"
        f'<details><summary>Reveal the answer</summary><p class="ac-answer">{prose(answer)}</p></details></div>'
    )
    html = fragment(body, kind="predict", piece="predict", script="recall.js", data={})
    lines = [f"Predict first: {prompt}", *(f"  – {option}" for option in options or ()), f"Answer: {answer}"]
    return Output("\n".join(lines), html)
