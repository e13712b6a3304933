"""The folder of a saved model: its format, atomic saving, and the fingerprint of what it contains."""
