"""Measures of frozen features and of encoders, one module each."""
