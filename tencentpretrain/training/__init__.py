"""Carrying out a run: schedules, optimizers, the engine, checkpoints, reports, the loop."""
