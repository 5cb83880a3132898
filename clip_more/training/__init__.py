"""One task, one loop, schedules, checkpoints."""
