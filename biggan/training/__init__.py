"""Training: losses, updates, the moving average, checkpoints and the loop that joins them."""
