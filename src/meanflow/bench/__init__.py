"""Counting and timing what training and sampling cost."""
