"""The suites, one file each; `registry.py` finds them by being here."""
