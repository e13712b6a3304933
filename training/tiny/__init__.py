"""How the packaged model was made, from text to weights."""
