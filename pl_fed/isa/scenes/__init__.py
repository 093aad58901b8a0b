"""Synthetic story scenes whose scores are known by construction."""
