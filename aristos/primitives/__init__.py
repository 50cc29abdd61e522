"""The operations that compiled code uses by name: memory, wire and buffers; and facts and files that need no more."""
