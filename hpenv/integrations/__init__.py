"""Bridges to other people's libraries, one file each; every one needs that library installed."""
