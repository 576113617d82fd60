"""Processes, machines, files and the terminal."""
