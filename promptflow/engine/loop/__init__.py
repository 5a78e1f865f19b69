"""The decode loop: who runs next, one batch a step, and what came of it."""
