"""Erasure that can be answered for: a ledger, a queue of requests, a list of what stays away, and a purge of files."""
