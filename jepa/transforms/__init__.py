"""Batched image transforms on the device: crops, masks and saccades."""
