from __future__ import annotations

from typing import Annotated, Any, Literal

import dspy
import pytest
from pydantic import TypeAdapter, ValidationError

from promptflow.errors import ProgramError, StoreNotFound
from promptflow.modules.tools import (
    Found,
    Handle,
    Tool,
    calculate,
    offered,
    read_only,
    read_tool,
    search_tool,
)
from promptflow.retrieval import Passage

TEXTS = {"a.md": "Ardel lies by the sea. " * 3, "b/c.md": "Brunow has 9,400 inhabitants."}


class Shelf:
    """A retriever of one's own; it remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, query: str, k: int = 5) -> list[Passage]:
        self.asked.append(query)
        return [Passage(d, n, 0, len(t), t, 1.0) for n, (d, t) in enumerate(TEXTS.items())][:k]

    def text(self, document: str) -> str:
        self.asked.append(document)
        if document not in TEXTS:
            raise StoreNotFound(document)
        return TEXTS[document]


@read_only
def population(
    city: str, year: Annotated[int, "a year"] = 2020, kind: Literal["a", "b"] = "a"
) -> int:
    """Return how many people live in a city.

    More that no model needs.
    """
    return len(city) + year


def test_a_function_is_a_tool():
    tool = Tool.of(population)
    assert (tool.name, tool.reads) == ("population", True)
    assert tool.prompt_text() == (
        "population(city: str, year: int = 2020, kind: Literal['a', 'b'] = 'a'): "
        "Return how many people live in a city."
    )
    made = TypeAdapter(tool.arguments())
    assert made.validate_python({"city": "Ulm", "kind": "b"}) == {"city": "Ulm", "kind": "b"}
    for wrong in ({"city": "Ulm", "other": 1}, {"year": 1}, {"city": "Ulm", "kind": "c"}):
        with pytest.raises(ValidationError):
            made.validate_python(wrong)


def test_a_tool_of_dspys_is_a_tool():
    tool = Tool.of(dspy.Tool(population, name="people", desc="Counts people."))
    assert tool.prompt_text().startswith("people(city: str")
    assert tool.prompt_text().endswith("Counts people.")
    assert tool.reads


def no_type(x):
    return x


def many(*names: str) -> str:
    return ""


def bag(**names: str) -> str:
    return ""


async def slow(name: str) -> str:
    return name


def picture(image: dspy.Image) -> str:
    return ""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_type, "x has no type"),
        (many, "names"),
        (bag, "names"),
        (slow, "coroutine"),
        (picture, "picture"),
        (lambda x: x, "no name"),
    ],
)
def test_what_a_model_cannot_call_is_refused(function: Any, says: str):
    with pytest.raises(ProgramError, match=says):
        Tool.of(function)


def test_what_may_change_something_is_refused_unless_allowed():
    def send(to: str) -> str:
        """Send a letter."""
        return to

    with pytest.raises(ProgramError, match="allow="):
        offered([population, send])
    assert set(offered([population, send], allow=["send"])) == {"population", "send"}
    with pytest.raises(ProgramError, match="no tools"):
        offered([population], allow=["sent"])
    with pytest.raises(ProgramError, match="one name"):
        offered([population, population])


def test_search_gives_passages_with_their_places():
    shelf = Shelf()
    found = search_tool(shelf, k=1)("sea")
    assert found == [Found(Passage("a.md", 0, 0, 69, TEXTS["a.md"], 1.0))]
    assert found[0].prompt_text().startswith("a.md 0-69: Ardel lies")
    with pytest.raises(ValueError, match="blank"):
        search_tool(shelf)(" ")
    assert shelf.asked == ["sea"]


def test_read_gives_a_span_and_what_is_left():
    search = search_tool(Shelf())
    read = read_tool(search)
    search("towns")
    assert read("b/c.md") == TEXTS["b/c.md"]
    assert read("b/c.md", 11, 5) == "9,400\n(13 characters follow)"
    assert read("b/c.md", 99) == "(nothing: the document has 29 characters)"
    with pytest.raises(ValueError, match="start from 0"):
        read("b/c.md", -1)


@pytest.mark.parametrize(
    "document",
    [
        "/etc/passwd",
        "../secret.md",
        "~/x",
        "file:///etc/passwd",
        "http://evil.example",
        "b/c.md",
        "",
    ],
)
def test_what_no_search_found_is_not_read(document: str):
    """The retriever is not even asked: one of a user's own may open files by their names."""
    shelf = Shelf()
    search = search_tool(shelf, k=1)
    search("sea")
    with pytest.raises(ValueError, match="give one that search returned"):
        read_tool(search)(document)
    assert shelf.asked == ["sea"]
    with pytest.raises(ProgramError, match="search_tool"):
        read_tool(shelf.search)


def test_a_handle_is_one_of_the_documents_found():
    tool = Tool.of(read_tool(search_tool(Shelf())))
    assert tool.handles == {"document"}
    assert tool.prompt_text().startswith("read(document: str, start: int = 0, length: int = 1000)")
    made = TypeAdapter(tool.arguments(["a.md"]))
    made.validate_python({"document": "a.md"})
    with pytest.raises(ValidationError):
        made.validate_python({"document": "b/c.md"})


def test_calculate_is_exact_and_evaluates_nothing():
    assert calculate("0.1 + 0.2") == "0.3"
    with pytest.raises(ValueError, match="no number and no sign"):
        calculate("__import__('os')")


def test_marks_of_handles_are_values():
    assert Handle() == Handle()


def test_tools_run_under_dspys_react():
    """DSPy reads plain functions: names, types and first lines are there."""
    search = search_tool(Shelf())
    tools = [dspy.Tool(t) for t in (search, read_tool(search), calculate)]
    assert [t.name for t in tools] == ["search", "read", "calculate"]
    assert set(tools[1].args) == {"document", "start", "length"}
    assert tools[2](expression="6 * 7") == "42"
