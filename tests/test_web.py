"""Web pages: what a browser shows, line by line."""

from __future__ import annotations

import pytest

from promptflow.retrieval.kinds.web import read


def text(markup: str, name: str = "a.html") -> str:
    return read(markup.encode(), name).text


CASES = {
    "optional end tags": ("<p>one<p>two<ul><li>a<li>b</ul>", "one\n\ntwo\n\n- a\n- b\n"),
    "white space": ("<p>Some <b>bold</b>   text\n more<br>next", "Some bold text more\nnext\n"),
    "entities": ("<p>&lt;|im_end|&gt; &eacute; &#x1F600;", "<|im_end|> é 😀\n"),
    "headings": ("<h1>A</h1>x<h3>B</h3><h6>C", "# A\n\nx\n\n### B\n\n###### C\n"),
    "hidden": (
        "<p>a<div hidden>b<p>c</div><p style='color:red; display : none'>d"
        "<p style='visibility:hidden'>e<dialog>f</dialog><p hidden=until-found>g",
        "a\n\ng\n",
    ),
    "unseen": (
        "<p>a<script>b</script><style>c</style><template><p>d</template><noscript>e</noscript>"
        "<!-- f --><svg><text>g</text></svg><iframe>h</iframe>i",
        "ai\n",
    ),
    "what looks like a tag in a script": ("<script>if (a<b) '</p>'</script><p>x", "x\n"),
    "sup": ("<p>10<sup>6</sup> m<sup>2</sup> 1<sup>st</sup> x<sup>n+1</sup>",
            "10^6 m^2 1st x^(n+1)\n"),
    "sup in sup": ("<p>2<sup>2<sup>3</sup></sup>", "2^(2^3)\n"),
    "notes": ("<p>text<sup><a href=#1>1</a></sup> and<sup>[2]</sup>", "text[1] and[2]\n"),
    "sub": ("<p>H<sub>2</sub>O x<sub>1</sub>2 10<sub>2</sub>", "H2O x_1 2 10_2\n"),
    "ordered lists": (
        "<ol start=3><li>a<li>b</ol><ol reversed><li>a<li>b</ol><ol type=I><li value=4>a<li>b</ol>",
        "3. a\n4. b\n\n2. a\n1. b\n\nIV. a\nV. b\n",
    ),
    "reversed from a start": ("<ol reversed start=10><li>a<li>b</ol>", "10. a\n9. b\n"),
    "lists in lists": (
        "<ol><li>a<ul><li>b<li>c</ul><li>d</ol>", "1. a\n  - b\n  - c\n2. d\n",
    ),
    "a list item of paragraphs": ("<ul><li><p>a<p>b<li>c</ul>", "- a\n\nb\n\n- c\n"),
    "definitions": (
        "<dl><dt>Pump<dd>moves water<dt>Valve<dt>Tap<dd>stops it<dd>twice<dt>alone</dl>",
        "Pump: moves water\n\nValve, Tap: stops it\n\nValve, Tap: twice\n\nalone\n",
    ),
    "details": ("<details><summary>More</summary>inside</details>", "More\n\ninside\n"),
    "pre": ("<pre>kept\n  as is</pre>", "kept\n  as is\n"),
    "pre with a comment": ("<pre># no heading\nx</pre>", "```\n# no heading\nx\n```\n"),
    "ruby": ("<p><ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>", "漢字(かんじ)\n"),
    "struck": ("<p>Price: <del>100</del> 80", "Price: ~~100~~ 80\n"),
    "boxes": ("<p><input type=checkbox checked>done", "[x] done\n"),
    "formula": (
        "<p><math><msup><mi>x</mi><mn>2</mn></msup><mo>=</mo><mfrac><mi>a</mi><mi>b</mi></mfrac>"
        "</math>", "x^2=(a)/(b)\n",
    ),
    "table": (
        "<table><caption>Cities</caption><tr><th>City<th>People<tr><td>Seoul<td>9.4 million"
        "<tr><td>Busan<td>3.3 million</table>",
        "Cities\n\nCity: Seoul; People: 9.4 million\nCity: Busan; People: 3.3 million\n",
    ),
    "table head of two rows": (
        "<table><thead><tr><th rowspan=2>City<th colspan=2>Sales<tr><th>2023<th>2024<tbody>"
        "<tr><td>Seoul<td>1<td>2</table>",
        "City: Seoul; Sales 2023: 1; Sales 2024: 2\n",
    ),
    "table spans": (
        "<table><tr><th>Day<th>Mon<th>Tue<tr><td rowspan=2>A<td colspan=2>shut<tr><td>1<td>2",
        "Day: A; Mon: shut; Tue: shut\nDay: A; Mon: 1; Tue: 2\n",
    ),
    "table with heads at its side": (
        "<table><tr><th>Name<td>Kim<tr><th>Born<td>1990</table>", "Name: Kim\nBorn: 1990\n",
    ),
    "table with an empty corner": (
        "<table><tr><td><th>2023<th>2024<tr><th>Seoul<td>1<td>2</table>",
        "Seoul; 2023: 1; 2024: 2\n",
    ),
    "table foot before its body": (
        "<table><thead><tr><th>a<th>b<tfoot><tr><td>sum<td>3<tbody><tr><td>x<td>3</table>",
        "a: x; b: 3\na: sum; b: 3\n",
    ),
    "hidden row": ("<table><tr><th>a<th>b<tr hidden><td>1<td>2<tr><td>3<td>4</table>",
                   "a: 3; b: 4\n"),
    "cells of blocks": (
        "<table><tr><th>a<th>b<tr><td>12 Main St<br>Seoul<td><ul><li>x<li>y</ul></table>",
        "a: 12 Main St, Seoul; b: x, y\n",
    ),
    "layout table": (
        "<table><tr><td><h2>Menu</h2><table><tr><th>a<th>b<tr><td>1<td>2</table><td>side</table>",
        "## Menu\n\na: 1; b: 2\n\nside\n",
    ),
    "soft hyphens": ("<p>hy\u00adphen z\u200bero", "hyphen zero\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_text_that_a_browser_shows(case: str) -> None:
    markup, shown = CASES[case]
    assert text(markup) == shown


def test_the_title_is_the_head_s() -> None:
    page = "<title>A &amp; B</title><body><svg><title>no</title></svg><p>x"
    assert read(page.encode(), "a.html").title == "A & B"


def test_xhtml_closes_what_html_leaves_open() -> None:
    page = (
        '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/>'
        '<script src="x"/></head><body><p class="a" /><a id="b"/><p>seen<br/>too '
        "<![CDATA[1 < 2]]></p></body></html>"
    )
    assert text(page, "a.xhtml") == "seen\ntoo 1 < 2\n"


def test_deep_and_wide_markup_is_read_without_recursion() -> None:
    assert text("<div>" * 50_000 + "deep") == "deep\n"
    assert text("<b>" * 2000 + "x" + "</b>" * 2000) == "x\n"
    assert text("<table><tr><th>a<th colspan=99999>b<tr><td rowspan=0>1<td>2<tr><td>3")
