"""Checks that every package runs on its own parts. Nothing here imports pytest."""
