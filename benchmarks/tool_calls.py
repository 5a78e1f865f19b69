"""How many calls of tools are malformed: arguments that a tool's own types refuse, or none at all.

    python benchmarks/tool_calls.py [--model M] [--calls N] [--agent react|react_v2|agent]
                                    [--tokens T] [--seconds S] [--json]

Tools of many types are offered two at a time, and called until each agent has made N calls. A call
is malformed where its arguments do not fit the tool (DSPy checks them by JSON Schema and by type),
or where a step came to no call. No tool here raises by itself. ``--tokens`` bounds a
thought and the arguments: small bounds cut many calls, which have to be whole all the same. What a
call is for is not judged: a model that is too small for tools calls them well-formed and in vain.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import itertools
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import dspy
from pydantic import BaseModel, Field

import promptflow as pf
from promptflow.modules.tools import calculate


class Pace(enum.Enum):
    """How fast."""

    SLOW = "slow"
    FAST = "fast"


class Place(BaseModel):
    """A place on the map."""

    name: str
    latitude: float = 0.0
    tags: list[str] = []


class Crew(BaseModel):
    """Who goes along."""

    captain: str
    home: Place
    others: Optional[list[Place]] = None  # noqa: UP045  # as many still write it


def find(query: str, limit: Annotated[int, Field(ge=1, le=9)] = 3) -> str:
    """Search the harbour's log."""
    return f"{limit} entries about {query[:40]}"


def weigh(boat: str, tons: float, loaded: bool = False) -> str:
    """Note a boat's weight."""
    return f"{boat[:40]}: {tons} t, {'loaded' if loaded else 'empty'}"


def route(start: Place, stops: list[Place], pace: Pace = Pace.SLOW) -> str:
    """Plan a route over several stops."""
    return f"from {start.name[:40]} over {len(stops)} stops, {pace.value}"


def enlist(crew: Crew, since: datetime.date) -> str:
    """Enlist a crew."""
    return f"{crew.captain[:40]} since {since.isoformat()}"


def tides(port: Literal["Ardel", "Brunow", "Cove"], day: Optional[int] = None) -> str:  # noqa: UP045
    """Tell the tides of a port."""
    return f"{port}: high at 6 on day {day or 1}"


def prices(table: dict[str, float], currency: Literal["EUR", "KRW"] = "EUR") -> str:
    """Sum up a table of prices."""
    return f"{len(table)} prices in {currency}"


def flags(colours: set[Literal["red", "blue", "white"]], pair: tuple[int, str]) -> str:
    """Hoist flags."""
    return f"{len(colours)} flags, {pair[0]}"


def now() -> str:
    """Tell the time."""
    return "six o'clock"


def 항구(이름: str, 수심: int) -> str:
    """항구의 수심을 적는다."""
    return f"{이름[:40]}: {수심} m"


def pay(amount: Decimal, ticket: uuid.UUID, when: datetime.datetime) -> str:
    """Pay for a ticket."""
    return f"paid {amount} at {when.isoformat()}"


def anything(data: dict[str, Any], notes: list[Any]) -> str:
    """Keep any data."""
    return f"kept {len(data)} and {len(notes)}"


TOOLS: list[Callable[..., Any]] = [
    find, weigh, route, enlist, tides, prices, flags, now, 항구, pay, anything, calculate,
]  # fmt: skip
QUESTIONS = (
    "What is the weight of the boat Alba?",
    "Plan a way from Ardel to Brunow over Cove.",
    "When is high tide at Cove on the third?",
    "How much are two tickets at 12.50 each?",
    "항구의 깊이는 얼마인가?",
    "Who sailed with captain Mira in May 2021?",
    'Keep a note: 3 nets, 2 ropes, 1 "anchor".',
)


def rounds() -> Iterator[tuple[list[Callable[..., Any]], str]]:
    """Yield two tools and a question, without end; few pairs, whose prompts begin alike."""
    pairs = [list(pair) for pair in zip(TOOLS[::2], TOOLS[1::2], strict=True)]
    for number in itertools.count():
        yield pairs[number % len(pairs)], QUESTIONS[number % len(QUESTIONS)]


def react(tools: list[Callable[..., Any]], question: str, seed: int) -> list[tuple[str, str]]:
    """Return the calls of ``dspy.ReAct`` as tools with what was wrong, which is mostly nothing."""
    agent = dspy.ReAct("question -> answer", tools=tools, max_iters=4)
    with dspy.context(lm=dspy.settings.lm.copy(seed=seed)):
        steps = agent(question=question).trajectory
    found = []
    for n in range(4):
        name = steps.get(f"tool_name_{n}")
        if name is None:
            done = n and steps[f"tool_name_{n - 1}"] == "finish"
            return found if done else [*found, ("", "a step came to no call")]
        said = str(steps[f"observation_{n}"])
        found.append((name, said if said.startswith("Execution error") else ""))
    return found


def react_v2(tools: list[Callable[..., Any]], question: str, seed: int) -> list[tuple[str, str]]:
    """Return the calls of ``dspy.ReActV2``."""
    agent = dspy.ReActV2("question -> answer: int", tools=tools, max_iters=3)
    with dspy.context(lm=dspy.settings.lm.copy(seed=seed)):
        result = agent(question=question)
    return [
        (one.name, str(one.value) if one.is_error else "")
        for turn in result.history.messages
        for one in turn["tool_calls"].tool_call_results.tool_call_results
    ]


def own(tools: list[Callable[..., Any]], question: str, seed: int) -> list[tuple[str, str]]:
    """Return the calls of ``pf.Agent``."""
    names = [tool.__name__ for tool in tools if tool is not calculate]
    tokens = dspy.settings.lm.kwargs["max_tokens"]
    limits = {"max_steps": 4, "thought_tokens": tokens, "argument_tokens": tokens}
    agent = pf.Agent("question -> answer", tools, allow=names, answer_tokens=8, **limits)
    result = pf.run(agent, lm=dspy.settings.lm.copy(seed=seed), seed=seed, question=question)
    return [(step.tool, step.error) for step in result.steps]


AGENTS = {"react": react, "react_v2": react_v2, "agent": own}
RUNS = 16  # at a time
SAID = ("the same call as before", "cannot", "ArithmeticFault", "is not called with a part")
"""What a tool, or an agent's own rule, says of a well-formed call."""


def measured(name: str, calls: int, seconds: float) -> dict[str, Any]:
    """Have one agent make ``calls`` calls, sixteen runs at a time, and none after ``seconds``."""
    began, made = time.perf_counter(), rounds()
    called: Counter[str] = Counter()
    wrong: list[tuple[str, str]] = []
    seed = 0
    with ThreadPoolExecutor(RUNS) as pool:
        while called.total() < calls and time.perf_counter() < began + seconds:
            given = [(*next(made), seed := seed + 1) for _ in range(RUNS)]
            for found in pool.map(lambda one: AGENTS[name](*one), given):
                for tool, error in found:
                    called[tool] += 1
                    if error and not any(said in error for said in SAID):
                        wrong.append((tool, error))
            print(f"{name}: {len(wrong)} of {called.total()}", file=sys.stderr, flush=True)
    return {
        "agent": name,
        "calls": called.total(),
        "malformed": len(wrong),
        "by_tool": dict(called.most_common()),
        "examples": wrong[:5],
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(description="malformed calls of tools, counted")
    parser.add_argument("--model", default="smollm2-135m-q4_0")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--agent", choices=AGENTS, action="append")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each agent")
    parser.add_argument("--threads", type=int, help="of the engine; fewer where others compute too")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    engine = pf.EngineOptions(threads=given.threads)
    pf.configure(given.model, options=engine, temperature=1.0, max_tokens=given.tokens)
    for name in given.agent or AGENTS:
        row = measured(name, given.calls, given.seconds)
        if given.json:
            print(json.dumps({"model": given.model, "tokens": given.tokens, **row}), flush=True)
            continue
        print(
            f"{name}: {row['malformed']} malformed of {row['calls']} calls, {row['seconds']} s",
            flush=True,
        )
        for tool, error in row["examples"]:
            print(f"  {tool}: {' '.join(error.split())[-300:]}")


if __name__ == "__main__":
    main()
