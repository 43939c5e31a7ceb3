"""Figures, the report page and the comparison of runs."""
