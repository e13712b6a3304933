"""An OpenAI-compatible embeddings server: `st-prompteol serve`."""
