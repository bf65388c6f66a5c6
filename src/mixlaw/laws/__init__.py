"""Formulas only: pure NumPy, no data, no files, no fit."""
