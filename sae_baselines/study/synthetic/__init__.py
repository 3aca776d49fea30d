"""The synthetic case study: features whose truth is known (paper, Section 3)."""
