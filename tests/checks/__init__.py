"""The two kinds of exercises: tests of one kind go through one of these."""

from attncourse.checks import Exercise, ReverseExercise, exercises


def implementations(chapter: str | None = None) -> list[Exercise]:
    """The exercises whose answer is an implementation."""
    return [spec for spec in exercises(chapter) if isinstance(spec, Exercise)]


def reverse_exercises(chapter: str | None = None) -> list[ReverseExercise]:
    """The exercises whose answer is a test."""
    return [spec for spec in exercises(chapter) if isinstance(spec, ReverseExercise)]
