"""What the engine needs of a model: tokens, templates, constraints, logits, memory."""
