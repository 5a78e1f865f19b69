"""A cited-answer agent: every answer with its quotes and their places, or a reason for none.

    python examples/cited_answers.py [--model NAME] [--question TEXT ...]

What it cites it has checked against the document; what gives orders in a quote is named.
"""

import argparse
from collections.abc import Sequence

import promptflow as pf

ASKED = (
    "How does tree of thoughts search?",
    "Which temperature did the tree-of-thoughts experiments use?",
    "What is the boiling point of osmium?",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Answers with checked citations")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--question", nargs="+", default=ASKED)
    given = parser.parse_args(arguments)
    pf.configure(given.model)
    agent = pf.GroundedQA(pf.build_index("guide"))
    for result in pf.run_many(agent, [{"question": q} for q in given.question]):
        if isinstance(result, pf.PromptflowError):
            raise result
        print(f"{result.answer}  ({result.reason or 'checked'})")
        for citation in result.citations:
            place = f"{citation.document}:{citation.start}-{citation.end}"
            order = "  [gives orders]" if citation in result.flagged else ""
            print(f"  {place}  {citation.quote!r}{order}")


if __name__ == "__main__":
    main()
