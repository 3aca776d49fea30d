"""`python -m sae_baselines_command`: the same as `sae-baselines`."""

from sae_baselines_command import main

main()
