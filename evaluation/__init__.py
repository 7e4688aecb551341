"""Scores, baselines, attacks and detectors, for evaluate.py."""
