"""Aristos inside other libraries: `torch` has the layer as a module, `transformers` uses it in Hugging Face's models.

No other module of Aristos imports these modules. Each needs the library after which it is named.
"""
