"""The operations that compiled code uses by name (memory, wire, buffers), and small helpers for facts and files."""
