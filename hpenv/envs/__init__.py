"""The registered environments: one file per id, with its factory and its manual (docstring)."""
