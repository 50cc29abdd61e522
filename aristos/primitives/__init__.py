"""What compiled code is made of: memory, wire and buffers by name."""
