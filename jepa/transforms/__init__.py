"""Batched image transforms on the device: crops, changes of color, masks and saccades."""
