"""Aristos inside other libraries: `torch` has its layer as a module, `transformers` gives it models of Hugging Face.

Nothing else imports these modules, and each needs the library that it is named after.
"""
