"""`attncourse assign`: make an assignment out of chapters and exercises."""

import argparse
from pathlib import Path

from attncourse.cli.text import failed


def add_to(commands: argparse._SubParsersAction) -> None:
    """The parser of `assign`."""
    assign = commands.add_parser(
        "assign",
        help="make an assignment: a hand-out for students, autograders for instructors",
        description="Make an assignment of chapters and single exercises: a zip for students, and a folder for "
        "instructors with reference, points, and autograders for Gradescope, nbgrader and GitHub. It is noted in the "
        "key, which `attncourse grade` needs; the key is made where there is none.",
    )
    assign.add_argument(
        "what",
        nargs="+",
        metavar="WHAT",
        help="a chapter (13, or gqa) or an exercise (gqa/repeat_kv), as `attncourse list` names them",
    )
    assign.add_argument("--title", required=True, help='what students read, as "Week 3"; file names come from it')
    assign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the instructor's key, kept secret")
    assign.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an empty one")
    assign.add_argument(
        "--variants", action="store_true", help="draw a variant of each exercise that has one, by the key"
    )
    words = assign.add_argument_group("questions in words, graded by hand")
    words.add_argument(
        "--question", action="append", default=[], metavar="TEXT", help="a question; --points N says what it is worth"
    )
    words.add_argument(
        "--points", action="append", default=[], metavar="N", help="of the questions, once for each, in their order"
    )
    words.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="YAML or JSON: a list of {text, points}, with an id and a chapter if wanted",
    )
    places = assign.add_argument_group("addresses, which are left out where they are not known")
    places.add_argument("--site", default="", metavar="URL", help="the published book, which texts then link to")
    places.add_argument(
        "--colab",
        default="",
        metavar="URL",
        help="the folder on GitHub where you put the unpacked hand-out, for links that open its notebooks in Colab",
    )
    assign.add_argument(
        "--torch",
        default="",
        metavar="ARGS",
        help="what pip installs torch by, in the autograders, such as a build for the CPU (default: the course's)",
    )
    assign.epilog = (
        'Example: attncourse assign 5 8 gqa/repeat_kv --title "Week 3" --key course.key --out week3 --variants '
        '--question "Where does a window lose information?" --points 4. '
        "Exit status: 0 done, 1 it could not be written, 2 wrong usage."
    )
    assign.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the assignment, and say what to do with what was written."""
    from attncourse.grading.assign import assign, question, read_questions
    from attncourse.grading.handout import AssignError
    from attncourse.grading.key import KeyFileError

    if len(options.question) != len(options.points):
        n, m = len(options.question), len(options.points)
        return failed("assign", f"{n} times --question and {m} times --points: give each question its points", 2)
    try:
        asked = [question(text, points) for text, points in zip(options.question, options.points, strict=True)]
        asked += read_questions(options.questions) if options.questions else []
        made = assign(
            options.what,
            options.title,
            options.key,
            options.out,
            variants=options.variants,
            questions=asked,
            site=options.site,
            colab=options.colab,
            torch=options.torch,
        )
    except (AssignError, KeyFileError) as error:
        return failed("assign", error, 2)
    except OSError as error:
        return failed("assign", f"cannot write {error.filename or options.out}: {error.strerror or error}", 1)
    exercises = made.assignment.exercises
    variants = [item for item in exercises if item.variant]
    points = sum(item.points for item in exercises) + sum(q["points"] for q in made.assignment.questions)
    counts = [
        f"{n} {what}{'' if n == 1 else 's'}" for n, what in ((len(exercises), "exercise"), (len(asked), "question"))
    ]
    print(f"{made.assignment.title}: {', '.join(counts)}, {points:g} points")
    for item in variants:
        print(f"  {item.id} in its variant {item.variant}")
    print(f"For students:    {made.handout}")
    print(f"For instructors: {made.bundle} (README.md says what to do; the zip for Gradescope is secret)")
    kept = "made; keep it, and show it to no student" if made.new_key else "it has the assignment now"
    print(f"Key:             {options.key} ({kept})")
    return 0
