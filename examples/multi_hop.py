"""A question that no single passage answers: what the first search finds makes the second query.

    python examples/multi_hop.py [--model NAME]

The same program with one hop and with two, on the documents in `ships/`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import promptflow as pf

SHIPS = Path(__file__).resolve().parent / "ships"
ASKED = "In which town was the survey ship Kestrel built?"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Grounded answers over two hops")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    given = parser.parse_args(arguments)
    pf.configure(given.model)
    index = pf.build_index("ships", SHIPS)
    for hops in (1, 2):
        result = pf.run(pf.GroundedQA(index, k=2, hops=hops), question=ASKED)
        print(f"{hops} hop: {result.answer} ({result.reason})")
        for citation in result.citations:
            print(f"  {citation.document}: {citation.quote}")


if __name__ == "__main__":
    main()
