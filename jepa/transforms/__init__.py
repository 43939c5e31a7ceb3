"""Batched transforms of images on the device: crops, masks and saccades."""
