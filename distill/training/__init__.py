"""The loop and all it needs: teacher, objective, optimizer, checkpoints, processes."""
