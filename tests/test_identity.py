from __future__ import annotations

import copy
import enum
import functools
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dspy
import identified
import pytest
from conftest import ROOT
from hypothesis import given, settings, strategies as st
from identified import color_of, helper, model_of, program

import promptflow as pf
from promptflow.engine.scripted import ScriptedEngine
from promptflow.errors import ProgramError, TemplateError
from promptflow.evaluation.identity import (
    data_hash,
    language_model,
    metric_name,
    model_identity,
    versions,
)
from promptflow.evaluation.metrics import f1
from promptflow.lm import LocalLM
from promptflow.modules import Predict, ZeroShotCoT
from promptflow.program.identity import hash_of, program_identity, program_state


def scripted(**settings: Any) -> LocalLM:
    return LocalLM(ScriptedEngine(lambda text, slot: "x"), **settings)


class Side(enum.Enum):
    """Stands in for the TypedDict of the program."""

    left = 1


CHANGES: dict[str, dict[str, Any]] = {
    "instructions": {"instructions": "Answer briefly."},
    "label": {"label": "Asked:"},
    "description": {"description": "what someone asks"},
    "limit": {"limit": 6},
    "literal's options": {"literal": Literal["a", "b", "c"]},
    "literal's order": {"literal": Literal["b", "a"]},
    "literal's types": {"literal": Literal["a", 1]},
    "enum's members": {"color": color_of("red green blue")},
    "enum's code": {"color": color_of(missing="green")},
    "field of a type": {"side": Side},
    "model's limits": {"model": model_of(least=2)},
    "model's validator": {"model": model_of(limit=9)},
    "model's kind of validator": {"model": model_of(mode="before")},
    "model's configuration": {"model": model_of(extra="forbid")},
    "validator's closure": {"validator": helper(3)},
    "demo": {"demos": [{"question": "1", "answer": "3"}]},
    "number of demos": {"demos": []},
    "temperature of a predictor": {"sampling": pf.Sampling(temperature=0.6)},
    "logit bias": {"sampling": pf.Sampling(temperature=0.5, logit_bias=((7, 1.0),))},
    "max_tokens": {"max_tokens": 21},
    "reasoning_tokens": {"reasoning_tokens": 31},
    "until": {"until": "grade"},
    "weigh": {"weigh": True},
    "config": {"config": {"temperature": 0.1}},
    "lm of a predictor": {"lm": scripted()},
    "settings of that lm": {"lm": scripted(temperature=0.2)},
    "samples": {"n": 4},
    "vote": {"vote": "logprob"},
    "reward": {"reward": lambda inputs, prediction: 0.0},
    "reward's default": {"worth": lambda state, times=2: len(state) * times},
    "reward's code": {"worth": lambda state, times=1: len(state) + times},
    "class attribute": {"greeting": "Hello "},
    "method": {"shout": True},
    "threshold": {"threshold": 2.0},
    "temperature of samples": {"temperature": 0.8},
    "number in a dict": {"weights": {"a": 1, "b": 3}},
    "kind of a number": {"weights": {"a": True, "b": 2}},
    "dataclass attribute": {"settings": identified.Settings(depth=3)},
    "list in a dataclass": {"settings": identified.Settings(words=["one"])},
    "documents of a retriever": {"retriever": (["one", "three"], 2, {"year": 2020})},
    "k of a retriever": {"retriever": (["one", "two"], 1, {"year": 2020})},
    "filters of a retriever": {"retriever": (["one", "two"], 2, {"year": 2021})},
    "number of modules": {"steps": 0},
    "instructions of DSPy's own": {"plain_instructions": "Think twice."},
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_single_change_to_a_nested_program_changes_it(change: str) -> None:
    assert program_identity(program()) == program_identity(program())
    assert program_identity(program()) != program_identity(program(**CHANGES[change]))


def test_all_of_these_changes_are_told_apart() -> None:
    hashes = {program_identity(program(**knobs)) for knobs in CHANGES.values()}
    assert len(hashes) == len(CHANGES)


@given(a=st.sets(st.sampled_from(sorted(CHANGES))), b=st.sets(st.sampled_from(sorted(CHANGES))))
@settings(max_examples=30, deadline=None)
def test_programs_are_equal_where_their_knobs_are(a: set[str], b: set[str]) -> None:
    def knobs(names: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in sorted(names):
            found |= CHANGES[name]
        return found

    same = {k: id(v) for k, v in knobs(a).items()} == {k: id(v) for k, v in knobs(b).items()}
    assert (program_identity(program(**knobs(a))) == program_identity(program(**knobs(b)))) is same


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=8,
)


@given(VALUES, VALUES)
@settings(max_examples=200, deadline=None)
def test_values_hash_alike_only_where_they_are_alike(a: Any, b: Any) -> None:
    assert hash_of(a) == hash_of(copy.deepcopy(a))
    if hash_of(a) == hash_of(b):
        assert repr(a) == repr(b) or a == b


class Holder(dspy.Module):
    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.held = held
        self.predict = Predict("question -> answer")

    def forward(self, **inputs: Any) -> Any:
        return self.predict(**inputs)


def holding(value: Any) -> str:
    return program_identity(Holder(value=value))


def test_the_order_of_a_dicts_keys_does_not_decide() -> None:
    one, two = {"a": 1, "b": {2: 3, "x": 4}}, {"b": {"x": 4, 2: 3}, "a": 1}
    assert holding(one) == holding(two)


def test_copies_are_the_same_program() -> None:
    made = program()
    for copied in (copy.copy(made), copy.deepcopy(made), made.deepcopy(), made.reset_copy()):
        same = program_identity(copied) == program_identity(made)
        assert same == (copied.named_predictors()[0][1].demos != [])


def test_what_happened_to_a_program_does_not_decide() -> None:
    made = Predict("question -> answer")
    before = program_identity(made)
    with dspy.context(lm=scripted()):
        made(question="1")
    made.compiled = {"score": 1}
    made._compiled = True
    assert program_identity(made) == before


def test_predictors_inside_compiled_modules_count() -> None:
    made = [Holder(), Holder()]
    for one, text in zip(made, ("Be brief.", "Be long."), strict=True):
        one.predict._compiled = one._compiled = True
        one.predict.signature = one.predict.signature.with_instructions(text)
    assert program_identity(Holder(inner=made[0])) != program_identity(Holder(inner=made[1]))


def test_the_text_of_a_layout_counts_and_its_file_does_not(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jinja", "b.jinja", "deep/c.jinja")]
    paths[2].parent.mkdir()
    for path in paths:
        path.write_text(identified.LAYOUT)
    assert len({program_identity(program(path)) for path in paths}) == 1
    before = program_identity(program(paths[0]))
    paths[0].write_text(identified.LAYOUT.replace("user", "system"))
    assert program_identity(program(paths[0])) != before
    paths[0].unlink()
    with pytest.raises(TemplateError, match=r"no layout .*a\.jinja"):
        program_identity(program(paths[0]))


def test_a_file_that_is_held_counts_by_its_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("one")
    b.write_text("one")
    assert holding(a) == holding(b)
    b.write_text("two")
    assert holding(a) != holding(b)


def test_a_signature_document_may_be_renamed(tmp_path: Path) -> None:
    text = '[inputs]\nquestion = "str"\n[outputs]\nanswer = "str"\n[labels]\nanswer = "So"\n'
    paths = [tmp_path / name for name in ("one.toml", "two.toml")]
    for path in paths:
        path.write_text(text)
    assert len({program_identity(Predict(path)) for path in paths}) == 1
    triggers = text.replace("answer = ", "reasoning = ", 1).replace("[outputs]\n", "[outputs]\n")
    triggers = (
        '[inputs]\nquestion = "str"\n[outputs]\nreasoning = "str"\nanswer = "str"\n'
        '[labels]\nreasoning = "Hm."\nanswer = "So"\n'
    )
    for path in paths:
        path.write_text(triggers)
    made = {program_identity(ZeroShotCoT("question -> answer", triggers=path)) for path in paths}
    assert len(made) == 1
    paths[0].write_text(triggers.replace("Hm.", "Well."))
    changed = ZeroShotCoT("question -> answer", triggers=paths[0])
    assert program_identity(changed) not in made


def test_globals_that_code_reads_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = program_identity(program())
    monkeypatch.setitem(identified.SCALE, "by", 2)
    scaled = program_identity(program())
    assert scaled != before
    monkeypatch.undo()
    assert program_identity(program()) == before
    monkeypatch.setattr(identified, "_offset", lambda number: number)
    assert program_identity(program()) not in (before, scaled)


def test_inherited_methods_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = program_identity(program())
    monkeypatch.setattr(identified.Base, "threshold", 0.6)
    assert program_identity(program()) != before
    monkeypatch.undo()
    monkeypatch.setattr(identified.Base, "chosen", lambda self, prediction: True)
    assert program_identity(program()) != before


PIECES: list[tuple[str, Callable[[int], Any]]] = [
    ("lambda", lambda n: eval(f"lambda: {n}")),
    ("closure", lambda n: lambda: n),
    ("closure of a closure", lambda n: (lambda inner: lambda: inner())(lambda: n)),
    ("default", lambda n: eval(f"lambda x={n}: x")),
    ("keyword default", lambda n: eval(f"lambda *, x={n}: x")),
    ("equal constants", lambda n: eval(f"lambda: {('1', '1.0', 'True')[n]}")),
    ("partial", lambda n: partial(helper, n)),
    ("partial keyword", lambda n: partial(helper, number=n)),
    ("cached", lambda n: functools.cache(helper(n))),
    ("bound method", lambda n: identified.Retriever([], n, {}).search),
    ("bound method of a list", lambda n: [n].index),
    ("callable object", lambda n: type("C", (), {"__call__": eval(f"lambda self: {n}")})()),
    ("class", lambda n: type("C", (), {"size": n})),
    ("slots", lambda n: Slotted(n)),
    ("subclass of a dict", lambda n: Named({"a": n})),
    ("subclass of a list", lambda n: Listed([n])),
    ("member", lambda n: enum.Enum("E", {"a": n}).a),  # type: ignore[attr-defined]
    ("float member", lambda n: FloatSide(n)),
    ("set", lambda n: {n, "a"}),
    ("bytes", lambda n: bytes([n])),
    ("deque", lambda n: __import__("collections").deque([n])),
    ("date", lambda n: __import__("datetime").date(2020, 1, n + 1)),
    ("decimal", lambda n: __import__("decimal").Decimal(n)),
    ("regex", lambda n: __import__("re").compile(f"a{n}")),
    ("array", lambda n: __import__("numpy").full(3, n)),
    ("array of objects", lambda n: __import__("numpy").array([{"a": n}, "x"], dtype=object)),
    ("random state", lambda n: __import__("random").Random(n)),
    ("example", lambda n: dspy.Example(a=n)),
    ("type", lambda n: Literal[(n,)]),  # type: ignore[valid-type]
    ("mapping proxy", lambda n: __import__("types").MappingProxyType({"a": n})),
    ("property", lambda n: type("P", (), {"p": property(eval(f"lambda self: {n}"))})()),
    ("tool", lambda n: dspy.Tool(eval(f"lambda: {n}"), name="t", desc="d")),
    ("namespace", lambda n: __import__("types").SimpleNamespace(a=n)),
    ("nan", lambda n: (float("nan"), float("inf"), -float("inf"))[n]),
]


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Named(dict[str, int]):
    pass


class Listed(list[int]):
    pass


class FloatSide(float, enum.Enum):
    zero, one, two = 0.0, 1.0, 2.0


@pytest.mark.parametrize(("kind", "make"), PIECES, ids=[kind for kind, _ in PIECES])
def test_whatever_a_module_holds_counts(kind: str, make: Callable[[int], Any]) -> None:
    assert holding(make(1)) == holding(make(1))
    assert len({holding(make(n)) for n in range(3)}) == 3


COUNT = 0
LOG: list[int] = []


def counted(log: list[int], texts: list[str], table: dict[str, int]) -> Any:
    number = 0

    def run(value: Any) -> Any:
        nonlocal number
        global COUNT
        number += 1
        COUNT += 1
        log.append(len(texts) + number_of(value))
        LOG.append(1)
        table[str(value)] = 1
        return [text for text in texts if text]

    return run


def number_of(value: Any) -> int:
    return 1


class Logging(dspy.Module):
    """Writes a log and counters, and reads its limit and what it remembers."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.count, self.log, self.memory = limit, 0, [], [0]
        self.table: dict[Any, Any] = {}

    def forward(self, value: Any) -> Any:
        self.count += 1
        self.log.append(value)
        self.table[value] = self.limit
        self.memory.append(value)
        return self.memory[-1]


def test_what_code_only_writes_does_not_decide() -> None:
    """A log or a counter changes while a program runs: the same program goes on."""
    log, texts, table = [1], ["a"], {"x": 1}
    run = counted(log, texts, table)
    before = hash_of(run)
    run(3)
    assert (log, table) == ([1, 2], {"x": 1, "3": 1})
    assert hash_of(run) == before
    assert hash_of(counted([], ["a"], {})) == before
    assert hash_of(counted([], ["b"], {})) != before
    made = Logging(3)
    before = program_identity(made)
    made.count, made.log, made.table = 7, [1, 2], {1: 2}
    assert program_identity(made) == before
    made.memory = [1]
    assert program_identity(made) != before
    assert program_identity(Logging(4)) != before


def test_what_code_reads_and_writes_decides() -> None:
    def remembering(seen: list[int]) -> Any:
        def run(value: int) -> bool:
            seen.append(value)
            return value in seen

        return run

    def popping(seen: list[int]) -> Any:
        return lambda: seen.pop()

    def given(seen: list[int]) -> Any:
        return lambda: (seen.append(1), seen)[1]

    def total(seen: int) -> Any:
        def run() -> int:
            nonlocal seen
            seen += 1
            return seen

        return run

    for make, one, two in (
        (remembering, [1], [2]),
        (popping, [1], [2]),
        (given, [1], [2]),
        (total, 1, 2),
    ):
        assert hash_of(make(one)) != hash_of(make(two))


def test_a_value_that_holds_itself_is_described() -> None:
    def loop(n: int) -> list[Any]:
        made: list[Any] = [n]
        made.append(made)
        return made

    assert holding(loop(1)) == holding(loop(1)) != holding(loop(2))
    names: dict[str, Any] = {}
    for number in range(400):
        exec(f"def f{number}(): return f{number + 1}()", names)
    names["f400"] = lambda: 1
    before = holding(names["f0"])
    names["f400"] = lambda: 2
    assert holding(names["f0"]) != before
    limit = sys.getrecursionlimit()
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(ProgramError, match="nested too deeply"):
        holding(deep)
    assert sys.getrecursionlimit() == limit


def test_locks_threads_and_files_say_no_more_than_their_class() -> None:
    import threading

    assert holding(threading.Lock()) == holding(threading.Lock())
    assert holding(threading.Thread()) == holding(threading.Thread())
    with open(__file__) as one, open(__file__) as two:
        assert holding(one) == holding(two)


def test_code_without_source_counts_with_what_it_inherits() -> None:
    def made(body: str, inherited: str) -> str:
        names: dict[str, Any] = {"dspy": dspy}
        exec(
            f"class A(dspy.Module):\n    def inner(self):\n        return {inherited}\n"
            f"class B(A):\n    def forward(self):\n        return self.inner() + {body}\n",
            names,
        )
        return program_identity(names["B"]())

    assert made("1", "2") == made("1", "2")
    assert len({made("1", "2"), made("2", "2"), made("1", "3")}) == 3


def test_comments_and_places_in_a_file_do_not_count() -> None:
    def made(text: str) -> Any:
        names: dict[str, Any] = {}
        exec(compile(text, text[:9], "exec"), names)
        return names["f"]

    a = made("def f(x):\n    return x + 1\n")
    b = made("# a comment\n\n\ndef f(x):\n    # another\n    return x + 1\n")
    assert hash_of(a) == hash_of(b)


def test_dspys_adapter_counts_where_it_words_the_prompt() -> None:
    own, theirs = Predict("question -> answer"), dspy.Predict("question -> answer")
    foreign = dspy.LM("openai/none", api_key="x")
    for made, lm, decides in (
        (own, scripted(), False),
        (theirs, scripted(), True),
        (own, foreign, True),
    ):
        hashes = set()
        for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.ChatAdapter()):
            with dspy.context(lm=lm, adapter=adapter):
                hashes.add(program_identity(made))
        assert len(hashes) == (2 if decides else 1)


def test_the_settings_of_an_lm_count_and_its_key_does_not() -> None:
    def lm(**kwargs: Any) -> str:
        return hash_of(dspy.LM("openai/none", **kwargs))

    assert lm(api_key="a") == lm(api_key="b")
    assert len({lm(), lm(temperature=0.5), lm(max_tokens=5), lm(api_base="http://x")}) == 4
    assert hash_of(scripted()) != hash_of(scripted(temperature=0.5))


def test_dspys_retriever_counts_with_the_configured_one() -> None:
    made = Holder(retrieve=dspy.Retrieve(k=3))
    hashes = []
    for texts in (["a"], ["b"], ["a"]):
        with dspy.context(rm=identified.Retriever(texts, 1, {})):
            hashes.append(program_identity(made))
    assert hashes[0] == hashes[2] != hashes[1]


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from identified import program
from promptflow.program.identity import program_identity, program_state
from mine import Mine
print(json.dumps([program_identity(program()), program_identity(Mine())]))
"""

MINE = '''
from pathlib import Path
import dspy
HERE = Path(__file__).parent

class Mine(dspy.Module):
    """A program in a file of its own."""

    words = {"c", "a", "b"}

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.key = lambda text: text in {"x", "y", "z"}

    def forward(self, question):
        from near import least
        assert __file__
        return self.predict(question=question + (HERE / "note.txt").name, least=least)
'''


def in_a_process(folder: Path, seed: str, module: str = "mine") -> list[str]:
    text = SCRIPT.replace("from mine", f"from {module}")
    path = f"{ROOT}:{ROOT / 'tests'}"
    env = {"PYTHONPATH": path, "PYTHONHASHSEED": seed, "HOME": str(Path.home()), "PATH": "/bin"}
    ran = subprocess.run(
        [sys.executable, "-c", text, str(folder)], capture_output=True, text=True, env=env
    )
    assert ran.returncode == 0, ran.stderr
    found: list[str] = json.loads(ran.stdout)
    return found


def test_programs_are_the_same_in_any_process_and_under_any_file_name(tmp_path: Path) -> None:
    for name, module in (("a", "mine"), ("deep/b", "other")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f"{module}.py").write_text(MINE)
        (tmp_path / name / "near.py").write_text("least = 1\n")
        (tmp_path / name / "note.txt").write_text("note")
    first = in_a_process(tmp_path / "a", "1")
    assert first == in_a_process(tmp_path / "a", "22")
    moved = in_a_process(tmp_path / "deep/b", "333", "other")
    assert moved == first
    with dspy.context(lm=None, rm=None, adapter=None):  # as in a process of its own
        assert first[0] == program_identity(program())
    (tmp_path / "a" / "near.py").write_text("least = 2\n")
    assert in_a_process(tmp_path / "a", "1")[1] != first[1]
    (tmp_path / "a" / "near.py").write_text("least = 1\n")
    changed = MINE.replace('"z"}', '"w"}')
    (tmp_path / "a" / "mine.py").write_text(changed)
    assert in_a_process(tmp_path / "a", "1")[1] != first[1]


def test_the_state_is_json_data() -> None:
    state = program_state(program())
    assert json.loads(json.dumps(state)) == state
    assert "0x" not in textwrap.dedent(json.dumps(state))


def test_the_hash_of_data_follows_values_order_and_inputs():
    a = dspy.Example(question="1", answer="x").with_inputs("question")
    b = dspy.Example(question="2", answer="y").with_inputs("question")
    same = dspy.Example(answer="x", question="1").with_inputs("question")
    assert data_hash([a, b]) == data_hash([same, b])
    assert data_hash([a, b]) != data_hash([b, a])
    assert data_hash([a]) != data_hash([a.with_inputs("question", "answer")])


def test_metrics_differ_by_what_they_do():
    def one(example, prediction, trace=None):
        return 1.0

    def two(example, prediction, trace=None):
        return 2.0

    assert hash_of(one) != hash_of(two)
    assert hash_of(f1) != hash_of(partial(f1, field="title"))
    assert hash_of(partial(f1, field="x")) == hash_of(partial(f1, field="x"))
    assert (metric_name(one), metric_name(partial(f1, field="title"))) == ("one", "f1:title")


def test_the_model_is_the_given_or_the_configured_one():
    lm = scripted()
    assert language_model(lm) is lm
    with dspy.context(lm=lm):
        assert language_model(None) is lm
    with dspy.context(lm=None), pytest.raises(ProgramError, match="no model is configured"):
        language_model(None)
    assert model_identity(lm) == "scripted@000000000000/scripted"


def test_versions_name_what_decides_results():
    assert {"python", "dspy", "llama-cpp-python", "llguidance"} <= versions().keys()
    assert len(versions()["promptflow source"]) == 12
