"""The pre-registered study of variance and generalisation gap (notebook 08)."""
