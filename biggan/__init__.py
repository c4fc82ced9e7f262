"""A trainer for class-conditional image GANs."""
