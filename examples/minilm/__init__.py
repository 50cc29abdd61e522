"""The parts of examples/minilm.py: tokenizer, encoder, split into experts, sentences. Not a library."""
