"""SAEs on the patches of vision transformers: trained beside random (paper, Appendix G)."""
