"""The KV cache: which sequences hold which tokens, what stays, and what is kept on disk."""
