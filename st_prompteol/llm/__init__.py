"""The decoder LLM: loading and checking its weights, adapters, quantization, and cutting at a layer."""
