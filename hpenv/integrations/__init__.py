"""Bridges to other libraries, one file each. Every file needs its library installed."""
