"""Mutual distillation: losses, the sides' scores, and cached teacher distributions."""
