"""One request's way through its sequence: slots opened, filled, searched, weighed."""
