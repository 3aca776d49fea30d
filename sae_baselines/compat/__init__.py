"""Every private or patched name of other packages, each with a contract test."""
