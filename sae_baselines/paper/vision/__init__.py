"""Image patches of trained beside random latents (paper, Appendix G)."""
