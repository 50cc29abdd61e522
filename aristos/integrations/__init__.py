"""Aristos inside other libraries: `torch` has the layer as a module, `transformers` uses it in Hugging Face's models.

Nothing else imports these modules, and each needs the library that it is named after.
"""
