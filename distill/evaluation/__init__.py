"""Scores of networks and of files: in training on all processes, and in detail afterwards."""
