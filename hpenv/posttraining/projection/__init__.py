"""Directions in the gradient, and what is done along them."""
