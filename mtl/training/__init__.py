"""Training: one run (`fit`), its loop, several seeds side by side."""
