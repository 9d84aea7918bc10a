"""Unlearning evaluated: ways to answer requests compared with the model retrained on what is retained."""
