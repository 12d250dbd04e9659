"""What grading costs: `python benchmarks/grading.py [--chapter gqa] [--submissions N] [--nbgrader M] [--out FILE]`.

A class hands in N notebooks of one chapter: solved, untouched, half done, with known mistakes, and some that do not
parse, end their process or never end, in the shares of `SHARES`. `attncourse grade` grades it with two processes on two
cores. Then nbgrader's `autograde` grades M of these notebooks, none of which ends its process or hangs, and `attncourse
grade` the same M, each as often as makes about N: a comment tells the copies apart, or they would be graded once.

CPU seconds are those of a command and of all that it started, also of what was killed and of what its parent left
behind: this process adopts it and waits for it. What a command takes before the first notebook is measured apart.
Prints a table, says which targets are reached, and whether both graders gave the same points; with --out writes it all,
with what it ran on: data/lab/grading.json.
"""

import argparse
import ast
import ctypes
import inspect
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attncourse.checks import exercises
from attncourse.grading.assign import Made, assign
from attncourse.lab.records import environment, write_json
from tests.checks.matrix import answers

ROOT = Path(__file__).parents[1]
PER_CENT = {
    "solved": 36,
    "one mistake": 25,
    "two mistakes": 12,
    "half done": 14,
    "untouched": 8,
    "does not parse": 2,
    "ends its process": 2,
    "never ends": 1,
}
RATIO, SECONDS, CORES = 15, 90, 2  # the targets: CPU against nbgrader; a class of 200, on so many cores
TITLE, SLUG = "Bench", "bench"
SUBREAPER = 36  # prctl: orphans below this process become its children
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # nbgrader runs alembic


@dataclass(frozen=True)
class Used:
    """What a command took. Seconds; load: runnable processes of the machine when it ended, mean of a minute."""

    wall: float
    cpu: float
    load: float

    def row(self) -> dict[str, float]:
        return {"wall_s": round(self.wall, 2), "cpu_s": round(self.cpu, 2), "load": round(self.load, 2)}


def used(command: Sequence[str], folder: Path, settings: Mapping[str, object] = {}, may_fail: bool = False) -> Used:
    """Run a command on CORES cores, and wait for all that it started. RuntimeError if it fails."""
    if ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) != 0:
        raise RuntimeError("this system cannot count orphaned processes: Linux is needed")
    cores = set(sorted(os.sched_getaffinity(0))[:CORES])
    before, start = _children_cpu(), time.monotonic()
    with open(folder / "said.txt", "wb") as said:
        env = os.environ | {name: str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        code = process.wait()
    wall = time.monotonic() - start
    _wait_for_orphans(20.0)
    if code != 0 and not may_fail:
        raise RuntimeError(f"{' '.join(command[:5])} … failed:\n{(folder / 'said.txt').read_text()[-3000:]}")
    return Used(wall, _children_cpu() - before, os.getloadavg()[0])


def _children_cpu() -> float:
    """CPU seconds of the children waited for, and of theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _wait_for_orphans(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return
    raise RuntimeError(f"what the command started still runs {seconds:.0f} s after its end")


# The submissions


def known_mistakes(chapter: str) -> dict[tuple[str, str], str]:
    """Source of wrong answers as learners write them, by (exercise's id, misconception)."""
    found = {}
    for (id, name), answer in answers(chapter).mutants.items():
        defines = next(task.defines for task in exercises(chapter) if task.id == id)
        if source := _standing_alone(answer, defines):
            found[id, name] = source
    return found


def _standing_alone(answer: object, defines: str) -> str | None:
    """An answer under the name it is looked for by, with the helpers and imports it needs; None if it has others."""
    module = sys.modules[answer.__module__]
    imports, definitions = {}, {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= {alias.asname or alias.name.split(".")[0]: node for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "_":
            definitions[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            definitions[node.targets[0].id] = node
    own = ast.parse(inspect.cleandoc(inspect.getsource(answer))).body[0]
    own.decorator_list, own.name = [], defines
    needed, todo = [own], [own]
    while todo:
        for name in {n.id for n in ast.walk(todo.pop()) if isinstance(n, ast.Name)}:
            node = imports.get(name) or definitions.get(name)
            if node is not None and node not in needed:
                needed.append(node)
                todo += [node] if name in definitions else []
    if any(isinstance(n, ast.ImportFrom) and n.module.startswith(("attncourse", "tests")) for n in needed):
        return None
    order = [*dict.fromkeys(imports.values()), *definitions.values(), own]
    return "\n\n".join(ast.unparse(node) for node in order if node in needed)


@dataclass(frozen=True)
class Student:
    """A submission. mistakes: the (exercise's id, misconception) that were put in."""

    name: str
    kind: str
    book: dict
    mistakes: tuple[tuple[str, str], ...] = ()


def the_class(n: int, chapter: str, made: Made, handed_out: Path) -> list[Student]:
    """n submissions in the stated shares, the same each time."""
    chance = random.Random(0)
    counts = {kind: round(n * share / 100) for kind, share in PER_CENT.items()}
    counts["solved"] += n - sum(counts.values())
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    chance.shuffle(kinds)
    fresh = json.loads(handed_out.read_text("utf-8"))
    solved = json.loads((made.bundle / "reference" / handed_out.name).read_text("utf-8"))
    right = {cell["id"]: "".join(cell["source"]) for cell in solved["cells"] if cell["id"].endswith("-answer")}
    wrong = known_mistakes(chapter)
    return [_submission(f"s{i:03}", kind, chapter, fresh, right, wrong, chance) for i, kind in enumerate(kinds)]


def _submission(
    name: str,
    kind: str,
    chapter: str,
    fresh: dict,
    right: Mapping[str, str],
    wrong: Mapping[tuple[str, str], str],
    chance: random.Random,
) -> Student:
    """One submission of a kind of `PER_CENT`. right: answers by cell; wrong: by exercise and misconception."""
    tasks = {f"{task.id.split('/')[1]}-answer": task for task in exercises(chapter)}
    cells, made = {} if kind == "untouched" else dict(right), []
    if kind == "half done":
        cells = dict(list(right.items())[: chance.randint(1, len(right) - 1)])
    elif kind in ("one mistake", "two mistakes"):
        can = sorted({id for id, _ in wrong})
        for id in chance.sample(can, min(len(can), 1 if kind == "one mistake" else 2)):
            made.append((id, chance.choice(sorted(of for task, of in wrong if task == id))))
            cells[f"{id.split('/')[1]}-answer"] = wrong[made[-1]]
    elif kind in ("does not parse", "ends its process", "never ends"):
        cell = chance.choice(sorted(right))
        body = {"ends its process": "import os; os._exit(1)", "never ends": "while True: pass"}.get(kind, "return (")
        cells[cell] = f"def {tasks[cell].defines}(*inputs, **named):\n    {body}\n"
    book = json.loads(json.dumps(fresh))
    for cell in book["cells"]:
        if cell["cell_type"] == "code" and cell["id"] in cells:
            cell["source"] = f"# {name}\n{cells[cell['id']]}"
    scratch = f"# {name} tries\nx = torch.randn(3, 4)\nx @ x.mT / 4**0.5"
    empty = {"cell_type": "code", "id": "scratch", "metadata": {}, "outputs": [], "execution_count": None}
    book["cells"].append(empty | {"source": scratch})
    return Student(name, kind, book, tuple(made))


def copies(students: Sequence[Student], n: int) -> list[Student]:
    """Each submission as often as makes about n, told apart by a comment."""
    found = []
    for i in range(max(1, round(n / len(students)))):
        for student in students:
            book = json.loads(json.dumps(student.book))
            book["cells"][-1]["source"] += f"\n# copy {i}"
            found.append(Student(f"{student.name}-{i}", student.kind, book, student.mistakes))
    return found


# The graders


def grade(students: Iterable[Student], file: str, key: Path, folder: Path) -> tuple[Used, dict[str, dict]]:
    """`attncourse grade` on a class: what it took, and the results of each student."""
    for student in students:
        place = folder / "submissions" / student.name / file
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(student.book), "utf-8")
    command = [sys.executable, "-m", "attncourse.cli", "grade", "submissions", "--key", str(key), "--out", "grades"]
    taken = used([*command, "--workers", str(CORES)], folder, {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1})
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in (folder / "grades" / "results").iterdir()}
    return taken, results


def nbgrader(students: Sequence[Student], file: str, course: Path, folder: Path) -> tuple[Used, Used, dict[str, float]]:
    """nbgrader's `autograde`: what it takes with no notebook, what these take, and their points."""
    settings = {"HOME": folder, "IPYTHONDIR": folder / "ipython", "JUPYTER_CONFIG_DIR": folder / "jupyter"}
    settings |= {"PATH": BIN, "PYTHONPATH": ROOT, "JUPYTER_PREFER_ENV_PATH": 1, "OMP_NUM_THREADS": 1}
    command = [sys.executable, "-m", "nbgrader"]
    used([*command, "generate_assignment", SLUG, "--create"], course, settings)
    nothing = used([*command, "autograde", SLUG, "--student", "nobody"], course, settings, may_fail=True)
    for student in students:
        place = course / "submitted" / student.name / SLUG / file
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps(student.book), "utf-8")
    taken = used([*command, "autograde", SLUG], course, settings)
    os.environ["PATH"] = BIN
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        return nothing, taken, {s.name: gradebook.find_submission(SLUG, s.name).score for s in students}


def measure(chapter: str, n: int, m: int, folder: Path) -> dict:
    """All runs, as they are written."""
    wheel = folder / "attncourse-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"not needed here")
    made = assign([chapter], TITLE, folder / "course.key", folder / "assigned", wheel=wheel)
    with zipfile.ZipFile(made.handout) as archive:
        archive.extractall(folder / "handed out")
    (handed_out,) = (folder / "handed out").rglob("*.ipynb")
    everyone = the_class(n, chapter, made, handed_out)
    places = [folder / name for name in ("class", "few", "same")]
    for place in places:
        place.mkdir()
    key, file = folder / "course.key", handed_out.name

    whole, results = grade(everyone, file, key, places[0])
    few, _ = grade([s for s in everyone if s.kind == "solved"][:CORES], file, key, places[1])
    chosen = [s for s in everyone if s.kind not in ("ends its process", "never ends")][:m]
    again = copies(chosen, n)
    same, points = grade(again, file, key, places[2])
    nothing, theirs, their_points = nbgrader(chosen, file, made.bundle / "nbgrader", folder)

    ours_each = (same.cpu - few.cpu) / (len(again) - CORES)
    theirs_each = (theirs.cpu - nothing.cpu) / len(chosen)
    ours_start, theirs_start = few.cpu - CORES * ours_each, nothing.cpu
    put_in = [(results[s.name]["extra_data"]["mistakes"], *mistake) for s in everyone for mistake in s.mistakes]
    named = sum(name in found.get(id, ()) for found, id, name in put_in)
    return {
        "kinds": dict(Counter(s.kind for s in everyone)),
        "class": {"submissions": n} | whole.row(),
        "start_up": {"attncourse_cpu_s": round(ours_start, 2), "nbgrader_cpu_s": round(theirs_start, 2)},
        "same": {
            "notebooks": len(chosen),
            "kinds": dict(Counter(s.kind for s in chosen)),
            "attncourse": {"submissions": len(again)} | same.row() | {"cpu_s_each": round(ours_each, 4)},
            "nbgrader": {"submissions": len(chosen)} | theirs.row() | {"cpu_s_each": round(theirs_each, 4)},
            "ratio": round(theirs_each / ours_each, 1),
            "ratio_with_start_up": round((theirs_start + n * theirs_each) / (ours_start + n * ours_each), 1),
        },
        "same_points": sum(points[s.name]["score"] == their_points[re.sub(r"-\d+$", "", s.name)] for s in again),
        "mistakes": {"put_in": len(put_in), "named": named},
        "isolation": sorted({result["extra_data"]["isolation"] for result in results.values()}),
    }


def table(found: Mapping) -> str:
    """What was measured, as lines."""
    whole, same, start = found["class"], found["same"], found["start_up"]
    ours, theirs = same["attncourse"], same["nbgrader"]
    lines = [f"{'':28}{'submissions':>12}{'wall s':>10}{'CPU s':>10}{'load':>8}"]
    rows = (("attncourse, the class", whole), ("attncourse, the same", ours), ("nbgrader, the same", theirs))
    for name, row in rows:
        lines.append(f"{name:28}{row['submissions']:12}{row['wall_s']:10.1f}{row['cpu_s']:10.1f}{row['load']:8.2f}")
    lines += [
        "",
        f"{'CPU seconds':28}{'attncourse':>12}{'nbgrader':>10}{'ratio':>10}",
        f"{'a submission':28}{ours['cpu_s_each']:12.3f}{theirs['cpu_s_each']:10.3f}{same['ratio']:10.1f}",
        f"{'start-up, once':28}{start['attncourse_cpu_s']:12.1f}{start['nbgrader_cpu_s']:10.1f}",
        f"{'a submission of the class,':28}",
        f"{'start-up counted':28}{'':22}{same['ratio_with_start_up']:10.1f}",
        "",
        f"The class: {', '.join(f'{n} {kind}' for kind, n in found['kinds'].items())}",
        f"Isolation level {' and '.join(filter(None, found['isolation']))}; {found['mistakes']['named']} of "
        f"{found['mistakes']['put_in']} mistakes that were put in are named",
        f"{found['same_points']} of {ours['submissions']} submissions have the points that nbgrader gives",
    ]
    for ratio, words in ((same["ratio"], ""), (same["ratio_with_start_up"], ", start-up counted")):
        reached = "reached" if ratio >= RATIO else "MISSED"
        lines.append(f"{ratio:.1f} times less CPU a submission than nbgrader{words} (target {RATIO}) {reached}")
    if whole["submissions"] == 200:
        reached = "reached" if whole["wall_s"] < SECONDS else "MISSED"
        lines.append(f"200 submissions in {whole['wall_s']:.0f} s on {CORES} cores (target {SECONDS}) {reached}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chapter", default="gqa", help="by its short name (default: %(default)s)")
    parser.add_argument("--submissions", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--nbgrader", type=int, default=20, metavar="M", help="of them graded by it (default: 20)")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    if not 1 <= options.nbgrader <= options.submissions or options.submissions < 4:
        parser.error(f"N must be 4 or more and M 1 to N, not {options.submissions} and {options.nbgrader}")
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        found = measure(options.chapter, options.submissions, options.nbgrader, Path(folder))
    print(table(found))
    if options.out:
        made_on = environment("cpu") | {"nbgrader": version("nbgrader"), "cores": CORES}
        head = {"date": date.today().isoformat(), "environment": made_on, "chapter": options.chapter}
        write_json(options.out, head | {"per_cent": PER_CENT} | found)


if __name__ == "__main__":
    main()
