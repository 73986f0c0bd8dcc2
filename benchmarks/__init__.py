"""Measurements of the promises, each run by one command: `uv run python -m benchmarks.<name>`."""
