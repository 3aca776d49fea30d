"""Somebody else's SAE, put to the test: the panels around it, its copy in the study."""
