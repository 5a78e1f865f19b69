from __future__ import annotations

import re
from html.parser import HTMLParser

import dspy
import pytest

from promptflow.engine.request import Usage
from promptflow.engine.scripted import ScriptedEngine
from promptflow.evaluation import Evaluation, Record, evaluate
from promptflow.lm import LocalLM
from promptflow.modules.predict import Predict
from promptflow.optimization import Budget, optimize
from promptflow.report import write_report
from promptflow.report.html import SHOWN, nested, prompt_diffs, render
from promptflow.terminal import HIDDEN

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checked(HTMLParser):
    """Parse strictly: every tag is closed in order; links, scripts and plots are collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def learns(text, slot):
    n = int(text.rsplit("Question:", 1)[1].split()[0])
    demos = text.count("Question:") - 1
    return str(2 * n) if (n * 7919) % 10 < 3 + 2 * demos else "no"


def doubles(count):
    return [
        dspy.Example(question=f"{i} doubled <b>&", answer=str(2 * i)).with_inputs("question")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def optimization():
    return optimize(
        Predict("question -> answer"),
        doubles(80),
        None,
        "exact_match",
        budget=Budget(calls=220),
        lm=LocalLM(ScriptedEngine(learns)),
        progress=False,
    )


def test_the_report_of_a_search_is_one_sound_file(optimization, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, optimization)
    page = Checked(path.read_text())
    assert page.links == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    assert page.tags.count("polyline") == len(optimization.candidates)
    assert not re.search(r"https?:|url\(|@import", path.read_text())


def test_it_shows_the_verdict_the_scores_and_where_they_belong(optimization):
    text = " ".join(Checked(render(optimization)).texts)
    for shown in (
        optimization.reason,
        f"{optimization.winner.score:.3f}",
        "scripted@000000000000/scripted",
        optimization.about["data"],
        optimization.candidates[-1].left,
        str(optimization.spent.tokens),
        "2 x",
    ):
        assert shown in text


def test_the_new_demos_are_marked_in_the_prompt(optimization):
    page = render(optimization)
    added = re.findall(r'<span class="new">(.*?)</span>', page)
    assert any("[[demos]]" in line for line in added)
    assert "doubled &lt;b&gt;&amp;" in page


def test_the_report_of_an_evaluation(tmp_path):
    lm = LocalLM(ScriptedEngine(learns))
    result = evaluate(Predict("question -> answer"), doubles(12), "exact_match", lm=lm)
    page = Checked(render(result))
    assert page.tags.count("svg") == 1
    assert page.tags.count("circle") == 1
    text = " ".join(page.texts)
    assert f"{result.score:.3f} on 12 examples" in text
    assert "11 doubled <b>&" in text


def one_record(**fields):
    record = Record(0, {"question": "q"}, {"answer": "a"}, fields, 1.0)
    return Evaluation(1.0, 0.5, 1.0, 1, 0, (record,), Usage(), 0.1, {"metric": "f1"})


def test_what_a_model_writes_cannot_become_markup():
    attack = "</td><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    page = Checked(render(one_record(answer=attack)))
    assert "script" not in page.tags
    assert page.links == []
    assert attack in "".join(page.texts)


def test_what_would_reorder_or_break_a_page_is_shown(tmp_path):
    """Right-to-left overrides, control characters and halves of characters, from anywhere."""
    attack = "a\u202eb\x1b[2J\x00\x9bc\ud800d"
    record = Record(0, {"question": attack}, {"answer": attack}, {"answer": attack}, 1.0)
    about = {"metric": attack, "model": attack}
    path = tmp_path / "report.html"
    write_report(path, Evaluation(1.0, 0.5, 1.0, 1, 0, (record,), Usage(), 0.1, about))
    page = path.read_text(encoding="utf-8")
    assert not HIDDEN.search(page)
    assert "a\\u202eb\\x1b[2J\\x00\\x9bc\\ud800d" in page


def test_a_tree_of_thoughts_is_drawn():
    thoughts = [
        {"number": 0, "parent": None, "depth": 0, "text": "", "value": None, "kept": True},
        {"number": 1, "parent": 0, "depth": 1, "text": "4 + 6", "value": 20.0, "kept": True},
        {"number": 2, "parent": 0, "depth": 1, "text": "4 * 6", "value": 0.001, "kept": False},
        {"number": 3, "parent": 1, "depth": 2, "text": "10 - 4", "value": 1.0, "kept": False},
    ]
    thoughts[2]["pruned"] = thoughts[3]["terminal"] = True
    [root] = nested(thoughts)
    assert [child["text"] for child in root["children"]] == ["4 + 6", "4 * 6"]
    assert root["children"][0]["children"][0]["text"] == "10 - 4"
    page = render(one_record(answer="x", tree={"thoughts": thoughts, "best": 1}))
    assert Checked(page).tags.count("li") == 4
    assert re.search(r'class="kept"><span class="thought">4 \+ 6', page)
    assert re.search(r'class="pruned"><span class="thought">4 \* 6', page)
    assert re.search(r'class="solved"><span class="thought">10 - 4', page)
    assert "&#34;parent&#34;" not in page


def test_a_diff_marks_lines():
    [diff] = prompt_diffs({"p": "a\nb"}, {"p": "a\nc"})
    assert [(line["kind"], line["text"]) for line in diff["lines"]] == [
        ("same", "a"),
        ("gone", "b"),
        ("new", "c"),
    ]


def test_a_long_table_is_cut_and_says_so():
    records = tuple(Record(i, {"q": "x"}, {}, {}, 1.0) for i in range(SHOWN + 7))
    result = Evaluation(1.0, 0.9, 1.0, len(records), 0, records, Usage(), 1.0)
    page = render(result)
    assert "7 more are not shown" in page
    assert page.count("<tr") < SHOWN + 40


def test_an_evaluation_without_a_score_still_has_a_report():
    record = Record(0, {"q": "x"}, {}, {}, None, "EngineLost: killed")
    nan = float("nan")
    page = render(Evaluation(nan, nan, nan, 0, 1, (record,), Usage(), 1.0))
    assert "EngineLost: killed" in page
    Checked(page)


def test_further_metrics_and_confused_labels_are_in_the_report():
    lm = LocalLM(ScriptedEngine(lambda text, slot: "cat" if "miaow" in text else "dog"))
    rows = [("miaow", "cat"), ("woof", "dog"), ("squeak", "cat")]
    data = [dspy.Example(sound=s, label=label).with_inputs("sound") for s, label in rows]
    result = evaluate(Predict("sound -> label: Literal['cat', 'dog']"), data, lm=lm)
    page = render(result)
    assert "macro_f1: 0.667" in page
    assert "cat was called: cat 1, dog 1." in page
