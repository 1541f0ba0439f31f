"""Loopholes, and the two verdicts on a program: what is paid and what is true."""
