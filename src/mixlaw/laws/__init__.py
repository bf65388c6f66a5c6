"""Formulas only: pure NumPy, no data, no files, no fit.

`MIXING_LAWS` holds every mixing law by its name. The modules are small and NumPy is all they need;
they are still imported only on demand, so that `mixlaw --help` stays fast.
"""
