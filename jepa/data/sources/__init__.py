"""Data sources, one module each. `jepa.data.sources.base` describes how to add one."""
