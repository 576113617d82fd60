"""Scoring of detections, without the official packages and with their numbers."""
