"""Where a study's activations come from, one file each: text, patches, synthetic samples."""
