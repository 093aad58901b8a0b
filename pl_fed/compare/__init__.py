"""Comparisons: a grid of runs over arms, settings and seeds, each a process of its own, and their report."""
