"""The tidy results table: one schema, checked and indexed once."""
