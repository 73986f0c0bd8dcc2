"""What evolution is worth against tuned baselines, on a stream of real tasks."""
