"""Is one panel of four cheaper than four runs of SAELens' own runner?

``python benchmarks/panel_vs_runs.py`` writes results/panel_vs_runs.json and prints its table.
The same members, settings and text both ways, in the order panel, runs, panel.
"""

import argparse
import dataclasses
import gc
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from panels import add_panel_arguments, one_panel
from render import panel_table
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class

from sae_baselines.baselines import baseline_name
from sae_baselines.provenance import environment
from sae_baselines.study import PanelSpec, train_study
from sae_baselines.study.build import architecture_options
from sae_baselines.study.data import load_text, split_text
from sae_baselines.study.engine import resolve_device
from sae_baselines.study.folder import PROVENANCE_FILE
from sae_baselines.study.held_out import hook_width
from sae_baselines.study.language_model import load_language_model
from sae_baselines.study.spec import TRAINED, MemberSpec

RESULTS = Path(__file__).parent / "results"
AIM = 0.6
_HELD_OUT_TOKENS = 4096


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=51_200, help="trained on by each member")
    add_panel_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "panel_vs_runs.json")
    args = parser.parse_args(argv)
    spec = one_panel(parser, args)
    record = measure(
        dataclasses.replace(
            spec,
            training_tokens=args.tokens,
            # The runs hold nothing out and measure nothing; little of it here.
            calibration_tokens=min(spec.calibration_tokens, _HELD_OUT_TOKENS),
            eval_tokens=min(spec.eval_tokens, _HELD_OUT_TOKENS),
            ce_tokens=0,
            n_checkpoints=0,
        )
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print("\n" + panel_table(record))


def measure(spec: PanelSpec) -> dict[str, Any]:
    """Panel, runs, panel."""
    logging.getLogger("sae_lens").setLevel(logging.ERROR)  # in-memory text: it warns each run
    device = resolve_device(spec.device)
    text = load_text(dataclasses.replace(spec.dataset, shuffle_seed=None))
    panels = [_panel(spec, text)]
    runs, d_in = _runs(spec, text, device)
    panels.append(_panel(spec, text))

    n_tokens = spec.training_tokens * len(runs)
    total = {key: sum(r[key] for r in runs.values()) for key in ("training_s", "loading_s")}
    total["whole_s"] = total["training_s"] + total["loading_s"]
    for timing in (*panels, total):
        timing["tokens_per_s"] = n_tokens / timing["training_s"]
    ratios = {
        part: statistics.mean(p[f"{part}_s"] for p in panels) / total[f"{part}_s"]
        for part in ("training", "whole")
    }
    return {
        "benchmark": "panel_vs_runs",
        "environment": environment(),
        "aim": AIM,
        "settings": {
            "model": spec.model.recorded_name,
            "hook_name": spec.hook_name,
            "architecture": spec.architectures[0],
            "members": list(runs),
            "d_in": d_in,
            "d_sae": spec.width(d_in),
            "l0": spec.l0s[0],
            "batch": spec.train_batch_size_tokens,
            "training_tokens": spec.training_tokens,
            "device": device,
            "training_s": "panel: pass_seconds of provenance.json; runs: construction and "
            "run() of LanguageModelSAETrainingRunner. Both include filling the buffer and "
            "estimating the norm; neither includes loading the model",
            "whole_s": "panel: the whole call of train_study, with loading, held-out "
            "activations, calibration and measurement; runs: training and loading, which each "
            "run does again",
            "tokens_per_s": "training tokens times members, by training_s",
        },
        "panels": panels,
        "runs": runs,
        "runs_total": total,
        "ratios": ratios,
        "meets_aim": {part: ratio <= AIM for part, ratio in ratios.items()},
    }


def _panel(spec: PanelSpec, text: Any) -> dict[str, float]:
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        study = train_study(spec, Path(folder) / "study", dataset=text)
        whole = time.perf_counter() - began
        provenance = next(study.folder.glob(f"panels/*/*/{PROVENANCE_FILE}"))
        training = json.loads(provenance.read_text())["pass_seconds"]
    print(f"panel: {training:.1f} s of training in {whole:.1f} s", flush=True)
    return {"training_s": training, "whole_s": whole}


def _runs(spec: PanelSpec, text: Any, device: str) -> tuple[dict[str, dict[str, float]], int]:
    timings: dict[str, dict[str, float]] = {}
    d_in = 0
    for member in spec.member_specs:
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            times, d_in = run_of_its_own(spec, member, text, device, folder)
        print(
            f"{member.name}: {times['training_s']:.1f} s, loading {times['loading_s']:.1f} s",
            flush=True,
        )
        timings[member.name] = times
    return timings, d_in


def run_of_its_own(
    spec: PanelSpec, member: MemberSpec, text: Any, device: str, output: str
) -> tuple[dict[str, float], int]:
    """Train one member of a panel by SAELens' runner, on the panel's own training text.

    Returns:
        Its times, and d_in.
    """
    base = spec.architectures[0]
    began = time.perf_counter()
    model = load_language_model(spec.model, spec.hook_name, device)
    loading = time.perf_counter() - began
    # Without what the panel holds out.
    train_text = split_text(load_text(spec.dataset, text), spec, model).train
    d_in = hook_width(model, spec.hook_name)
    name = base if member.constraint == TRAINED else baseline_name(member.constraint, base)
    cfg = _runner_config(spec, name, base, d_in, device, output)
    began = time.perf_counter()
    runner = LanguageModelSAETrainingRunner(
        cfg, override_dataset=train_text, override_model=model
    )
    runner.run()
    return {"training_s": time.perf_counter() - began, "loading_s": loading}, d_in


def _runner_config(
    spec: PanelSpec, name: str, base: str, d_in: int, device: str, output: str
) -> LanguageModelSAERunnerConfig[Any]:
    config_class = get_sae_training_class(name)[1]
    known = {f.name for f in fields(config_class)}
    d_sae = spec.width(d_in)
    sae = config_class(
        d_in=d_in,
        d_sae=d_sae,
        dtype=spec.dtype,
        device=device,
        decoder_init_norm=1.0,
        # SAELens' type does not list all that it accepts.
        **{"normalize_activations": spec.normalize_activations},
        **architecture_options(base, spec.l0s[0], d_sae, known),
        **spec.sae,
    )
    # Field names are SAELens' own in a panel's spec too; what both have is the same.
    ours = {f.name for f in fields(spec)}
    theirs = {f.name for f in fields(LanguageModelSAERunnerConfig)}
    same = {n: getattr(spec, n) for n in ours & theirs - {"sae", "device", "seqpos_slice"}}
    return LanguageModelSAERunnerConfig(
        sae=sae,
        device=device,
        seqpos_slice=tuple(spec.seqpos_slice),
        model_name=spec.model.recorded_name,
        model_class_name=spec.model.loader,
        dataset_path=Path(spec.dataset.path).name,
        is_dataset_tokenized=False,
        seed=spec.seeds[0],
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=output,
        verbose=False,
        **same,
    )


if __name__ == "__main__":
    main()
