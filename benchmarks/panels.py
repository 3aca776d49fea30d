"""The one panel that a benchmark trains."""

import argparse
from pathlib import Path

from sae_baselines.paper.demo.specs import demo_spec
from sae_baselines.study import PanelSpec, load_spec
from sae_baselines.study.plan import panels_of


def add_panel_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `one_panel` reads."""
    parser.add_argument("--model", help="Hub name or folder; default: the demo's")
    parser.add_argument("--dataset", help="Hub name or file; default: the demo's")
    parser.add_argument("--spec", type=Path, help="a panel of your own instead of the demo's")


def one_panel(parser: argparse.ArgumentParser, args: argparse.Namespace) -> PanelSpec:
    """The demo's panel or the user's own; several of them are refused."""
    if args.spec is None:
        spec = demo_spec(model=args.model, dataset=args.dataset)
    else:
        spec = load_spec(args.spec)
    if len(panels_of(spec)) != 1:
        parser.error(f"{args.spec}: has several panels; give one architecture, L0 and seed")
    return spec
