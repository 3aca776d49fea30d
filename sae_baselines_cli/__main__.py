"""`python -m sae_baselines_cli`: the same as `sae-baselines`."""

from sae_baselines_cli import main

if __name__ == "__main__":
    main()
