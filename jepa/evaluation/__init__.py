"""Measures of frozen features and encoders, one per module."""
