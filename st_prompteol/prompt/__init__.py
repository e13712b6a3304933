"""The text around a sentence: templates, and tokenizers that contain them."""
