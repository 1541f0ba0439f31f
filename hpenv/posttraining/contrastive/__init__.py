"""Pairs of programs, a hack and a clean one, and the directions they give."""
