"""An agent of promptflow's own: search, read a span, calculate, under constraints; a trace to read.

    python examples/agent_tools.py [--model NAME] [--steps 4]

The choice of a tool and its arguments are typed slots: no answer of any model can fail to parse.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import promptflow as pf

SHIPS = Path(__file__).resolve().parent / "ships"
ASKED = "In which year was the Kestrel built, and how old was she in 2000?"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An agent with constrained tool calls")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args(arguments)
    pf.configure(given.model)

    @pf.read_only
    def words(text: str) -> int:
        """Count the words of a text."""
        return len(text.split())

    index = pf.build_index("ships", SHIPS)
    tools = ["search", "read", "calculate", words]
    agent = pf.Agent("question -> answer", tools, index=index, max_steps=given.steps)
    result = pf.run(agent, question=ASKED)
    print(result.steps)
    print(f"answer ({result.ended}): {result.answer}")
    for passage in result.passages:
        print(f"  found {passage.document} {passage.start}-{passage.end}")


if __name__ == "__main__":
    main()
