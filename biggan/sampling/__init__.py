"""Sampling: latents, standing statistics, images, figures."""
