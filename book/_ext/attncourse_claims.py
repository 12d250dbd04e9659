"""The page of claims, made of `attncourse/data/claims.json`."""

import json
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

from attncourse.show.claims import claims_markdown

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "attncourse" / "data" / "claims.json"


class Claims(SphinxDirective):
    """Every claim, chapter by chapter. A chapter's title links to its notebook when that exists."""

    def run(self):
        self.env.note_dependency(str(CLAIMS))
        self.env.note_reread()  # a new notebook changes this page
        notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
        text = claims_markdown(json.loads(CLAIMS.read_text("utf-8"))["claims"], notebooks)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app):
    app.add_directive("claims", Claims)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
