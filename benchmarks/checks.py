"""How long a check takes to answer: `python benchmarks/checks.py [repeats]`, from the repository's root.

Three answers for each exercise: a right one, a known mistake (the median over all), and a mistake that has no
name, for which every pair of mistakes is tried; where the answer is a test, good and lax ones. The target: a median
under 200 ms, none over 1 s, on two cores.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from attncourse.checks import evaluate
from tests.checks import implementations, matrix, reverse_exercises

MEDIAN_MS, MOST_MS = 200, 1000


def milliseconds(id: str, answer: Callable, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        evaluate(id, answer)
        times.append(1000 * (time.perf_counter() - before))
    return times


def main() -> int:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    everything: list[float] = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {repeats} repeats\n")
    print(f"{'exercise':26}{'answer':10}{'median ms':>10}{'max ms':>10}")
    for spec in implementations():
        answers = matrix.answers(spec.id.split("/")[0])
        unknown = [
            answer
            for (id, _), (_, answer) in answers.forms.items()
            if id == spec.id and not evaluate(id, answer).mistakes
        ]
        groups = {
            "passed": [spec.reference],
            "named": [answer for (id, _), answer in answers.mutants.items() if id == spec.id],
            "unknown": unknown,
        }
        for kind, group in groups.items():
            times = [ms for answer in group for ms in milliseconds(spec.id, answer, repeats)]
            everything += times
            print(f"{spec.id:26}{kind:10}{statistics.median(times):10.0f}{max(times):10.0f}")
    for spec in reverse_exercises():
        answers = matrix.answers(spec.id.split("/")[0])
        groups = {"passed": answers.good, "lax": {key: test for key, (_, test) in answers.lax.items()}}
        for kind, group in groups.items():
            tests = [test for (id, _), test in group.items() if id == spec.id]
            times = [ms for test in tests for ms in milliseconds(spec.id, test, repeats)]
            everything += times
            print(f"{spec.id:26}{kind:10}{statistics.median(times):10.0f}{max(times):10.0f}")
    median, most = statistics.median(everything), max(everything)
    print(f"\nall: median {median:.0f} ms (target {MEDIAN_MS}), max {most:.0f} ms (target {MOST_MS})")
    return int(median > MEDIAN_MS or most > MOST_MS)


if __name__ == "__main__":
    sys.exit(main())
