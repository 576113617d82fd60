"""Checks that take longer than a test: killed runs, and equality of processes and passes."""
