"""DSPy's own agent, ``dspy.ReAct``, with promptflow's tools: search, read a span, calculate.

    python examples/react_tools.py [--model NAME] [--steps 3]

The adapter confines the names of tools and writes arguments as a JSON object; which ones a tool
takes DSPy's agent only checks afterwards. `agent_tools.py` confines those too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import dspy

import promptflow as pf

SHIPS = Path(__file__).resolve().parent / "ships"
ASKED = "In which year was the Kestrel built, and how old was she in 2000?"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="dspy.ReAct on a local model, with three tools")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--steps", type=int, default=3)
    given = parser.parse_args(arguments)
    pf.configure(given.model, max_tokens=200)  # small models ramble
    index = pf.build_index("ships", SHIPS)
    search = pf.search_tool(index, k=2)
    tools = [search, pf.read_tool(search), pf.calculate]
    agent = dspy.ReAct("question -> answer", tools=tools, max_iters=given.steps)
    result = agent(question=ASKED)
    for name, value in result.trajectory.items():
        print(f"{name}: {str(value)[:300]}")
    print(f"answer: {result.answer}")


if __name__ == "__main__":
    main()
