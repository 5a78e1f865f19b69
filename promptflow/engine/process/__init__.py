"""The child process of an engine: host, loop of messages, and what goes through the pipe."""
