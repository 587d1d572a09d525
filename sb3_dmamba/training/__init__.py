"""Updates, schedules, checkpoints."""
