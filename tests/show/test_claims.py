import re

import pytest

from attncourse import show
from attncourse.show.claims import CHAPTERS, VERDICTS, claims_markdown, load_claims
from attncourse.show.html import static


def test_claims_of_a_chapter():
    output = show.claims(chapter="mla")
    mine = [claim for claim in load_claims().values() if claim["chapter"] == "mla"]
    assert output.text.startswith(f"{len(mine)} audited claims")
    for claim in mine:
        assert claim["claim"].replace("`", "") in output.text
        assert output.html.count("<tr>") == len(mine) + 1
    assert "A decoder may switch" not in output.text  # of another chapter
    assert 'aria-label="' in output.html and "overflow" in static("course.css")


def test_claims_by_id_keep_their_order():
    text = show.claims("mla-93", "mla-57x").text
    assert "93.34\u00a0% less" in text and "56.9 times" in text
    assert text.index("93.34") < text.index("56.9")
    assert "  verdict: misleading (arithmetic)" in text
    assert "  why: The number appears only with the 6-bit cache." in text
    assert show.claims("mla-93").text.startswith("1 audited claim;")


def test_a_verdict_is_a_word_and_the_baseline_stands_beside_it():
    html = show.claims("mla-57x").html
    assert "holds with its baseline named" in html
    assert "a model that nobody built" in html
    assert "popular texts" in html


def test_steps_lead_from_the_claim_to_the_number():
    output = show.claim_steps("mla-93")
    lines = output.text.splitlines()
    assert [re.split(" = | ", line.strip())[-1] for line in lines[1:]]
    for number in (
        "389,120 B a token",
        "69,120 B a token",
        "82.2\u00a0% less",
        "25,920 B a token",
        "93.34\u00a0% less",
    ):
        assert number in output.text and number in output.html
    assert lines[-1].startswith("  the claim: told is 93.3 %: ")
    assert "(512 + 64) × 60 × 16 / 8" in output.html


@pytest.mark.parametrize("id", ["mla-93", "mla-57x", "mla-576"])
def test_the_claims_of_the_decomposer_have_steps(id):
    assert len(load_claims()[id]["steps"]) >= 4
    assert show.claim_steps(id).html


def test_every_claim_can_be_shown():
    for id, claim in load_claims().items():
        assert claim["verdict"] in show.claims(id).text
        if claim["steps"]:
            assert show.claim_steps(id).text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: show.claims(), "ids or a chapter"),
        (lambda: show.claims("mla-93", chapter="mla"), "ids or a chapter"),
        (lambda: show.claims(chapter="nothing"), r"'nothing'; there are claims for .*mla"),
        (lambda: show.claims("nothing"), r"'nothing'; there are .*mla-93"),
        (lambda: show.claim_steps("nothing"), "'nothing'"),
        (lambda: show.claim_steps("mla-below-100b"), "no number: it is opinion"),
    ],
)
def test_what_is_not_there_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_page_has_every_claim_under_its_chapter():
    records = list(load_claims().values())
    text = claims_markdown(records, ["14_mla"])
    assert f"{len(records)} claims." in text
    counted = {verdict: sum(claim["verdict"] == verdict for claim in records) for verdict in VERDICTS}
    assert all(f"| {verdict} | {n} |" in text for verdict, n in counted.items() if n)
    chapters = re.findall(r"^## (\d\d .*)$", text, re.MULTILINE)
    assert chapters == sorted(chapters)
    assert "](../notebooks/14_mla.ipynb)" in text and "13_gqa.ipynb" not in text
    for claim in records:
        section = text.split(f"## {CHAPTERS[claim['chapter']][0][:2]} ")[1].split("\n## ")[0]
        card = section.split(f"### {claim['title']}\n")[1].split("\n### ")[0]
        assert claim["claim"] in card and f"**{claim['verdict'].capitalize()}.**" in card and claim["baseline"] in card
        assert all(source["text"] in card for source in claim["said_by"])
        assert all(step["numbers"] in card and step["value"] in card for step in claim["steps"])


def test_the_page_links_the_sources():
    text = claims_markdown([load_claims()["gqa-groups"]], [])
    assert "[Ainslie et al. 2023](bibliography.md#ainslie2023)" in text
    assert "](https://github.com/" in text
