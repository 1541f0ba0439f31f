"""Baselines of the controllers: base rates and base schedules, by hand or by search."""
