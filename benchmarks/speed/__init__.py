"""Speed and memory, compared with the reference implementation and other libraries."""
