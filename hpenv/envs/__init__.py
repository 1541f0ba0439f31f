"""The registered environments: one file per id, its factory and, as module docstring, its manual."""
