"""``python -m promptflow`` is the command line."""

from promptflow.cli import main

main()
