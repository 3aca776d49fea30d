"""A first study on real inputs that needs no model hub."""
