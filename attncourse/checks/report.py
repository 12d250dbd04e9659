"""Show a verdict as text and as HTML, in any notebook or terminal."""

import os
import re
from html import escape

from attncourse.checks.judge import Difference, Verdict

HEADINGS = {
    "passed": ("✓", "correct"),
    "not attempted": ("○", "not attempted yet"),
    "raised": ("✗", "your code raised an error"),
    "forbidden": ("✗", "a library call this exercise asks you to write"),
    "type": ("✗", "not the right kind of result"),
    "shape": ("✗", "not the right shape"),
    "dtype": ("✗", "not the right dtype"),
    "nan": ("✗", "not finite"),
    "gradient": ("✗", "not the right gradient"),
    "mistake": ("✗", "not the right values"),
    "different": ("✗", "not the right values"),
    "misses": ("✗", "some wrong implementations pass your test"),
    "too strict": ("✗", "a right implementation fails your test"),
}
COLOURS = {"✓": "#2e7d32", "○": "#757575", "✗": "#c62828"}  # of the bar beside the text, never of the text


class CheckFailed(AssertionError):
    """Raised by `check` under nbgrader when an answer does not pass, so that nbgrader scores it right."""


class Report:
    """A verdict that shows itself: `str(report)` is the text, notebooks get HTML."""

    def __init__(self, verdict: Verdict):
        self.verdict = verdict
        self._shown = False

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    @property
    def points(self) -> int:
        return self.verdict.points

    def show(self) -> None:
        """Display once: as HTML in a notebook, else as printed text."""
        try:
            from IPython import get_ipython
            from IPython.display import display

            notebook = get_ipython() is not None
        except ImportError:
            notebook = False
        if notebook:
            display({"text/plain": str(self), "text/html": self._repr_html_()}, raw=True)
        else:
            print(self)
        self._shown = True
        if os.environ.get("NBGRADER_EXECUTION") and not self.passed:
            raise CheckFailed(str(self))

    def _ipython_display_(self) -> None:
        if not self._shown:  # as the last value of a cell it has been shown already
            self.show()

    def __repr__(self) -> str:
        names = ", ".join(mistake.name for mistake in self.verdict.mistakes)
        return f"<Report {self.verdict.exercise.id}: {self.verdict.kind}{f' ({names})' if names else ''}>"

    def __str__(self) -> str:
        mark, heading = HEADINGS[self.verdict.kind]
        lines = [f"{mark} {self.verdict.exercise.id}: {heading}{self._points()}"]
        lines += [f"  {line}" for line in self._lines()]
        if self.verdict.difference:
            lines += [f"  {line}" for line in _difference_lines(self.verdict.difference)]
        lines += [f"  Advice: {advice}" for advice in self.verdict.advice]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        mark, heading = HEADINGS[self.verdict.kind]
        paragraphs = [_html(line) for line in self._lines()]
        if self.verdict.difference:
            paragraphs += [_html(line) for line in _difference_lines(self.verdict.difference)]
        paragraphs += [f"<em>Advice.</em> {_html(advice)}" for advice in self.verdict.advice]
        body = "".join(f'<p style="margin:0.3em 0 0">{paragraph}</p>' for paragraph in paragraphs)
        title = f"<strong>{mark} {escape(self.verdict.exercise.title)}: {heading}</strong>{escape(self._points())}"
        return (
            f'<div style="border-left:4px solid {COLOURS[mark]};padding:0.4em 0.8em;margin:0.4em 0;'
            f'overflow-wrap:anywhere;line-height:1.5">{title}{body}</div>'
        )

    def _points(self) -> str:
        points = self.verdict.points
        return f" ({points} of {self.verdict.exercise.points} points)" if points else ""

    def _lines(self) -> list[str]:
        lines = (
            [self.verdict.message]
            if self.verdict.message and self.verdict.kind not in ("passed", "not attempted")
            else []
        )
        mistakes = self.verdict.mistakes
        if self.verdict.kind == "misses":
            return [*lines, *(f"– {mistake.title}" for mistake in mistakes)]
        if mistakes:
            begin = (
                "It does what a known mistake does: "
                if len(mistakes) == 1
                else "It does what two mistakes at once do: "
            )
            lines.append(begin + "; and ".join(mistake.title for mistake in mistakes) + ".")
        for mistake in mistakes:
            lines.append(f"{mistake.explanation} To reread: “{mistake.reread}”.")
        return lines


def _difference_lines(difference: Difference) -> list[str]:
    place = f"[{', '.join(map(str, difference.index))}]" if difference.index else ""
    lines = [
        f"Smallest case where it shows ({difference.script}): {difference.sizes}.",
        f"{difference.output}{place} is {_number(difference.got)}; it should be {_number(difference.expected)}.",
    ]
    if not difference.index:  # a single number has no row
        return lines
    return [
        *lines,
        f"Your row:  {_row(difference.got_row)}",
        f"Right row: {_row(difference.expected_row)}",
    ]


def _number(value: float | int | bool, form: str = ".5g") -> str:
    """A number of the output as its dtype has it: True, 7 or 0.25."""
    return f"{value + 0.0:{form}}" if isinstance(value, float) else str(value)  # + 0.0: no minus before a zero


def _row(values: tuple[float, ...], most: int = 8) -> str:
    shown = "  ".join(f"{_number(value, '8.4f'):>5}" for value in values[:most])
    return f"{shown} …" if len(values) > most else shown


def _html(text: str) -> str:
    """Escape, and set `code` and aligned rows of numbers in a fixed-width font."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    match = re.fullmatch(r"(Your|Right) row:(.*)", text)
    if match is None:
        return text
    label = f"{match[1]} row:".ljust(11).replace(" ", "\N{NO-BREAK SPACE}")
    cells = match[2].strip().rjust(8).replace(" ", "\N{NO-BREAK SPACE}")
    return f'<code style="white-space:pre-wrap">{label}{cells}</code>'
