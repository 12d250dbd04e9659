"""`python -m tests.mutation [MODULE …]` makes mutants of these modules (of all), and runs the tests against each.

It resumes: what was found is kept in `_build/mutation`, and a mutant is tried again when its module or the test that
killed it has changed. The figures go to results.json. It fails where a survivor is not in explained.json, or a mutant
that is in it is killed.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from datetime import UTC, datetime
from importlib import metadata

from tests.mutation import results
from tests.mutation.mutants import MODULES, Mutant, mutants, source
from tests.mutation.results import KILLED, SURVIVED, digest
from tests.mutation.runner import (
    CACHE,
    ROOT,
    Attempt,
    Session,
    _write,
    baseline,
    digests,
    fails_anew,
    killer_digests,
    run,
    test_files,
    warm_up,
)


def kept(module: str) -> dict:
    path = CACHE / f"{module}.json"
    return json.loads(path.read_text()) if path.exists() else {"source": "", "verdicts": {}}


def to_try(module: str, known: dict, tests: dict[str, str], everything: str, again: bool) -> list[Mutant]:
    """The mutants whose verdict is not known, or may have changed."""
    same, listed = known["source"] == digest(source(module)), results.explained(module)
    found = []
    for id, mutant in mutants(module).items():
        verdict = known["verdicts"].get(id) if same else None
        if verdict and verdict["verdict"] == KILLED and verdict["tests"] == tests.get(verdict["by"].split("[")[0]):
            continue
        settled = verdict and (verdict["tests"] == everything or id in listed)
        if settled and verdict["verdict"] == SURVIVED and not again:
            continue
        found.append(mutant)
    return found


def drawn(module: str, sample: int) -> set[str]:
    """The mutants to try: all, or the first of an order drawn by the module's name."""
    ids = sorted(mutants(module))
    random.Random(module).shuffle(ids)
    return set(ids[: sample or None])


def work_on(modules: list[str], most: int, again: bool, sample: int):
    def work(session: Session) -> None:
        tests, texts, everything = baseline(session, most), killer_digests(), digest(*digests().values())
        for module in modules:
            known, start = kept(module), time.time()
            chosen = drawn(module, sample)
            chosen |= known["verdicts"].keys()
            todo = [mutant for mutant in to_try(module, known, texts, everything, again) if mutant.id in chosen]
            same = known["source"] == digest(source(module))
            fresh = {id: known["verdicts"][id] for id in mutants(module) if same and id in known["verdicts"]}
            for mutant in todo:
                fresh.pop(mutant.id, None)
            count = [0]

            def done(mutant: Mutant, verdict: str, by: str | None, fresh=fresh, count=count, module=module) -> None:
                file = (by or "").split("::")[0]
                files = {file} if verdict == KILLED else {f"tests/test_{module}.py"}
                suspect = any((module, mutant.function, file) in session.ran_while_collecting for file in files)
                on = texts.get((by or "").split("[")[0]) if verdict == KILLED else everything
                fresh[mutant.id] = {"verdict": verdict, "by": by, "tests": on, "suspect": suspect}
                count[0] += 1
                if count[0] % 50 == 0:
                    _write(CACHE / f"{module}.json", {"source": digest(source(module)), "verdicts": fresh})

            run(session, todo, tests, known["verdicts"], done, most)
            fresh = {id: fresh[id] for id in mutants(module) if id in fresh}
            _write(CACHE / f"{module}.json", {"source": digest(source(module)), "verdicts": fresh})
            left = sum(v["verdict"] == SURVIVED for v in fresh.values())
            print(
                f"{module:16} {len(fresh):5} mutants, {left:4} survive; "
                f"{len(todo)} tried in {time.time() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    return work


def confirm(module: str) -> None:
    """What a test file holds from before the mutant came, made anew: is the kill one, and does it kill then?"""
    known = kept(module)
    for id, verdict in known["verdicts"].items():
        if not verdict["suspect"] or id not in mutants(module):
            continue
        mutant = mutants(module)[id]
        if verdict["verdict"] == KILLED:
            if not fails_anew(mutant, [verdict["by"]]) and not fails_anew(mutant, list(map(str, test_files()))):
                verdict |= {"verdict": SURVIVED, "by": None}
        elif fails_anew(mutant, [f"tests/test_{module}.py"]):
            verdict |= {"verdict": KILLED, "by": f"tests/test_{module}.py", "tests": None}
        verdict["suspect"] = False
        _write(CACHE / f"{module}.json", known)


def report(modules: list[str]) -> int:
    """Write the figures. 1 where a survivor is not explained, or an explained mutant is killed."""
    rows, wrong = {}, 0
    for module in modules:
        verdicts = {id: verdict for id, verdict in kept(module)["verdicts"].items() if id in mutants(module)}
        rows[module] = results.row(module, len(mutants(module)), verdicts, digest(source(module)))
        for id in rows[module]["survivors"]:
            print(f"{module}: survives: {id}")
        stale = {id for id in results.explained(module) if verdicts.get(id, {"verdict": SURVIVED})["verdict"] == KILLED}
        stale |= results.explained(module) - mutants(module).keys()
        for id in sorted(stale):
            print(f"{module}: explained, but killed or not made: {id}")
        wrong += len(rows[module]["survivors"]) + len(stale)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "hypothesis", "pytest")}
    results.write(rows, {"python": platform.python_version(), **versions}, datetime.now(UTC).date().isoformat())
    every = list(rows.values())
    tried, killed = sum(row["tried"] for row in every), sum(row["killed"] for row in every)
    print(
        f"{tried} mutants tried, {killed} killed, {sum(row['explained'] for row in every)} explained, "
        f"{sum(len(row['survivors']) for row in every)} survive; "
        f"of those not equivalent, {results.share(every):.2%} are killed"
    )
    return int(wrong > 0)


def repeat(count: int) -> int:
    """Make a few mutants of results.json again: is each still killed by the test that killed it?"""
    chosen = results.repeated(count)
    alive = []

    def work(session: Session) -> None:
        for module, id, by in chosen:
            mutant = mutants(module).get(id)
            if mutant is None or by not in session.items:
                print(f"{module}: no longer made, or no longer tested: {id}")
                continue
            verdict, _ = Attempt(session, mutant, [by], {by: 1.0}).result()
            if verdict == SURVIVED:
                alive.append(id)
                print(f"{module}: {by} does not fail: {id}")
            else:
                print(f"{module}: killed: {id}")

    files = sorted({by.split("::")[0] for _, _, by in chosen})
    warm_up([ROOT / file for file in files])
    Session(work).collect(files)
    return int(bool(alive))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="mechanism modules; all, if none is named")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    parser.add_argument("--sample", type=int, default=160, help="of each module, drawn with a fixed seed (160; 0: all)")
    parser.add_argument("--again", action="store_true", help="try survivors again: those explained, too")
    parser.add_argument("--report", action="store_true", help="run nothing: write the figures of what was found before")
    parser.add_argument("--repeat", type=int, metavar="N", help="make only N mutants of results.json again")
    arguments = parser.parse_args()
    modules = arguments.modules or MODULES
    if unknown := set(modules) - set(MODULES):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.repeat:
        return repeat(arguments.repeat)
    if not arguments.report:
        warm_up(test_files())
        process = os.fork()
        if not process:
            work = work_on(modules, arguments.jobs, arguments.again, arguments.sample)
            os._exit(int(Session(work).collect(test_files())))
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            return 2
        for module in modules:
            confirm(module)
    return report(modules)


if __name__ == "__main__":
    raise SystemExit(main())
