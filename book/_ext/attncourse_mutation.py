"""How many small changes of the mechanisms the tests notice, from `tests/mutation/results.json`."""

import json
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "tests" / "mutation" / "results.json"


class Mutation(SphinxDirective):
    """A sentence of totals, and a table with a line for each module."""

    def run(self):
        self.env.note_dependency(str(RESULTS))
        return self.parse_text_to_nodes(mutation_markdown(json.loads(RESULTS.read_text("utf-8"))))


def mutation_markdown(results):
    """Markdown: what share of the changes that matter is noticed."""
    total = results["total"]
    share = f"{100 * total['share_killed']:.1f}".removesuffix(".0")
    rows = [
        f"{total['tried']:,} of {total['mutants']:,} possible changes were tried, on {results['date']}: "
        f"{total['killed']:,} are noticed, {total['explained']:,} change nothing that could be noticed, and "
        f"{total['survivors']:,} are neither. That is {share} % of those that matter.",
        "",
        "| module | changes | tried | noticed | change nothing |",
        "| --- | --- | --- | --- | --- |",
    ]
    for module, row in results["modules"].items():
        numbers = [row[key] for key in ("mutants", "tried", "killed", "explained")]
        rows.append(f"| `{module}` | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    return "\n".join(rows)


def setup(app):
    app.add_directive("mutation", Mutation)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
