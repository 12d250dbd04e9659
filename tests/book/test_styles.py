"""The one stylesheet keeps every rule that a page can use, and pages wait for no script and no picture."""

import base64
from types import SimpleNamespace

import pytest
import tinycss2

from tests.book.extensions import load

STYLES = load("attncourse_styles")


def pruned(sheet, pages=(), scripts=()):
    rules = tinycss2.parse_stylesheet(sheet, True, True)
    return STYLES.pruned(rules, STYLES.Names(pages, scripts)).replace("\n", "")


@pytest.mark.parametrize(
    ("sheet", "expected"),
    [
        (".a{color:red}.b{color:red}", ".a{color:red}"),
        (".a.b{top:0}.a .a > p{top:0}", ".a .a > p{top:0}"),
        (".b, .a, p{top:0}", ".a,p{top:0}"),
        ("p:not(.b){top:0}.a:is(.b, .c){top:0}", "p:not(.b){top:0}.a:is(.b, .c){top:0}"),
        ("@media print{.b{top:0}}@media print{.a{top:0}}", "@media print{.a{top:0}}"),
        ("@font-face{font-family:b}@keyframes b{to{top:0}}", "@font-face{font-family:b}@keyframes b{to{top:0}}"),
        ('@import "b.css";[class~="b"]{top:0}#b{top:0}', '[class~="b"]{top:0}#b{top:0}'),
        ('p{width:1.5em}a[href$=".b"]{top:0}', 'p{width:1.5em}a[href$=".b"]{top:0}'),
    ],
)
def test_only_a_rule_with_a_class_that_is_nowhere_is_left_out(sheet, expected):
    assert pruned(sheet, ['<p class="a">']) == expected


def test_names_may_stand_in_scripts_or_be_put_together_there():
    sheet = ".shown{top:0}.side-left{top:0}.other{top:0}"
    assert pruned(sheet, scripts=["x.add('shown'); y.add(`side-${where}`)"]) == ".shown{top:0}.side-left{top:0}"


HEAD = """<html data-content_root="../"><head>
<link href="../_static/styles/theme.css?digest=1" rel="stylesheet" />
<link rel="stylesheet" type="text/css" href="../_static/own.css?v=2" />
<link rel="icon" href="../_static/logo.svg"/>
<script src="../_static/a.js"></script><script>let x = 1;</script>
<script>DOCUMENTATION_OPTIONS.pagename = 'p';</script><script defer src="../_static/b.js"></script></head>
<body class="used">{picture}</body></html>"""


@pytest.fixture
def site(tmp_path):
    static, picture = tmp_path / "_static", base64.b64encode(bytes(range(256)) * 3).decode()
    (static / "styles").mkdir(parents=True)
    (static / "basic.css").write_text(".used{background:url(logo.svg)}")
    (static / "styles" / "theme.css").write_text('@import "../basic.css";.used{src:url("../f/a.woff2")}.gone{top:0}')
    (static / "own.css").write_text(".used{background:url(data:x)}")
    (tmp_path / "book").mkdir()
    page = HEAD.replace("{picture}", f'<svg><image href="data:image/png;base64, {picture}"/></svg>')
    (tmp_path / "book" / "p.html").write_text(page)
    (tmp_path / "index.html").write_text("<html>a redirect</html>")
    return tmp_path


def bundle(site):
    STYLES.bundle(SimpleNamespace(outdir=site, builder=SimpleNamespace(format="html")), None)
    return (site / "book" / "p.html").read_text(), (site / "_static" / "book.css").read_text()


def test_sheets_become_one_in_their_order_with_their_addresses(site):
    page, sheet = bundle(site)
    assert sheet.splitlines() == [
        ".used{background:url(logo.svg)}",
        ".used{src:url(f/a.woff2)}",
        ".used{background:url(data:x)}",
    ]
    assert page.count("stylesheet") == 1 and 'href="../_static/book.css?v=' in page and 'rel="icon"' in page
    assert (site / "index.html").read_text() == "<html>a redirect</html>"


def test_scripts_wait_in_their_order(site):
    page, _ = bundle(site)
    assert '<script defer src="../_static/a.js"></script><script>let x = 1;</script>' in page
    assert "<script type=\"module\">DOCUMENTATION_OPTIONS.pagename = 'p';</script>" in page
    assert page.count("defer") == 2


def test_pictures_become_files(site):
    page, _ = bundle(site)
    (picture,) = (site / "_static" / "pictures").iterdir()
    assert picture.read_bytes() == bytes(range(256)) * 3
    assert f'<image href="../_static/pictures/{picture.name}"/>' in page and "base64" not in page


def test_what_was_built_before_stays(site):
    """The next build writes a few pages anew."""
    (site / "book" / "q.html").write_text((site / "book" / "p.html").read_text())
    before = bundle(site)
    assert bundle(site) == before
    (site / "book" / "p.html").write_text(HEAD)
    (site / "_static" / "own.css").write_text(".used{top:0}")
    after, sheet = bundle(site)
    assert ".used{top:0}" in sheet
    link = next(line for line in after.splitlines() if "stylesheet" in line)
    assert link in (site / "book" / "q.html").read_text() and link not in before[0]


def test_pages_with_different_sheets_are_named(site):
    (site / "book" / "q.html").write_text(HEAD.replace("own.css", "other.css"))
    with pytest.raises(ValueError, match=r"own\.css"):
        bundle(site)
