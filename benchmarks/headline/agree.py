"""Does `interp_embedding` agree with a judge? Both on the same latents of the same SAEs.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none OPENAI_MODEL=my-judge
    sae-baselines judge test --suite interp_detection
    python benchmarks/headline/agree.py <study> --config smollm2.yaml --members trained,random

The study was evaluated with `interp_embedding`, as the file's section `evals` says; the judge
is asked by `interp_detection`, on the first of the same latents. Writes agree.csv, a line for
each latent, and agree.json: Spearman's rank correlation with a 95 % bootstrap interval (latents
drawn anew within each SAE), of all and within each member. SAEs that are judged are kept in
--work, and are not judged again.
"""

import argparse
import csv
import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sae_baselines.evals import evaluate, load_eval_spec, write_results
from sae_baselines.evals.latent_contexts import DEFAULTS
from sae_baselines.evals.results import current_results
from sae_baselines.evals.study import local_model_of, study_targets
from sae_baselines.provenance import environment

HERE = Path(__file__).parent
EMBEDDING = ("embedding_auc", "embedding_auc_hard")
DETECTION = "interp_detection"
JUDGE = "detection_auc"
JUDGED = (JUDGE, f"{JUDGE}_null_exchanged")
FIELDS = ("sae", "member", "latent", *EMBEDDING, *JUDGED)
_LATENT = "latent_"
DRAWS = 2000
# A correlation of fewer is no number.
LEAST = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Judge, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="evaluated with interp_embedding")
    parser.add_argument("--members", default="trained,random")
    parser.add_argument("--architecture", default="batchtopk")
    parser.add_argument("--seed", type=int, default=0, help="of training, and of the draw")
    parser.add_argument("--latents", type=int, default=20, help="of each SAE")
    parser.add_argument(
        "--asked", type=int, default=10, help="contexts of a latent on each side"
    )
    parser.add_argument("--config", type=Path, required=True, help="the study's panel file")
    parser.add_argument("--work", type=Path, default=Path("agree"))
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    asked = args.members.split(",")
    of_members = {
        f"{target.facts.panel}.{target.facts.member}": (target, target.facts.member)
        for target in study_targets(args.study)
        if target.facts.member in asked
        and target.facts.seed == args.seed
        and target.facts.architecture == args.architecture
    }
    if lacking := sorted(set(asked) - {member for _, member in of_members.values()}):
        parser.error(f"--members: {lacking[0]!r} is no member of seed {args.seed} in the study")
    spec = load_eval_spec(args.config)
    embedding = spec.options_of("interp_embedding")
    asked_of = {name: embedding[name] for name in DEFAULTS if name != "n_latents"}
    options = {**asked_of, "n_latents": args.latents, "n_asked": args.asked}
    own = dataclasses.replace(spec, suites={DETECTION: options})
    table = current_results(args.study)[0]
    by_embedding = scored(table, "interp_embedding", EMBEDDING)
    rows: list[dict[str, Any]] = []
    for name, (target, member) in of_members.items():
        if name not in by_embedding:
            parser.error(f"{name} has no interp_embedding; run sae-baselines eval first")
        out = args.work / name
        evaluate([target], own, out, model=local_model_of(args.study))
        judged = scored(write_results(out), DETECTION, JUDGED).get(name, {})
        known = by_embedding[name]
        rows += [
            {"sae": name, "member": member, "latent": latent, **known[latent], **judged[latent]}
            for latent in sorted(judged.keys() & known.keys())
        ]
    with (args.out / "agree.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for row in rows:
            cells = [row[name] for name in FIELDS]
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in cells])
    record = {"environment": environment(), "judge": _judge(args.work), **agreement(rows)}
    (args.out / "agree.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["agreement"], indent=2))


def scored(
    table: pd.DataFrame, suite: str, metrics: Sequence[str]
) -> dict[str, dict[int, dict[str, float]]]:
    """By SAE and latent."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    of_latents = table.task.fillna("").str.startswith(_LATENT)
    part = table[(table.suite == suite) & table.metric.isin(metrics) & of_latents]
    row: Any
    for row in part.itertuples():
        latents = found.setdefault(f"{row.panel}.{row.member}", {})
        cells = latents.setdefault(int(row.task.removeprefix(_LATENT)), {})
        cells[row.metric] = float(row.value)
    return {
        name: {i: cells for i, cells in of.items() if len(cells) == len(metrics)}
        for name, of in found.items()
    }


def agreement(rows: Sequence[dict[str, Any]], draws: int = DRAWS) -> dict[str, Any]:
    """Rank correlations of the judge's scores with each AUC.

    Args:
        rows: A latent each (`FIELDS`).
        draws: Of the bootstrap.
    """
    members = dict.fromkeys(str(row["member"]) for row in rows)
    parts = {"all": list(rows)} | {
        member: [row for row in rows if row["member"] == member] for member in members
    }
    found = {}
    for name, part in parts.items():
        if len(part) < LEAST:
            continue
        found[name] = {
            "latents": len(part),
            **{score: float(np.mean([row[score] for row in part])) for score in JUDGED},
        }
        for auc in EMBEDDING:
            rho = _rho(part, auc)
            spread = np.array([_rho(drawn, auc) for drawn in _drawn(part, draws)])
            low, high = np.nanquantile(spread, (0.025, 0.975))
            found[name][auc] = {"rho": rho, "low": float(low), "high": float(high)}
    return {"agreement": found}


def _rho(rows: Sequence[dict[str, Any]], auc: str) -> float:
    x, y = ([float(row[name]) for row in rows] for name in (auc, JUDGE))
    if len(set(x)) < 2 or len(set(y)) < 2:
        return float("nan")
    found: Any = spearmanr(x, y)
    return float(found.statistic)


def _drawn(rows: Sequence[dict[str, Any]], draws: int) -> Iterator[list[dict[str, Any]]]:
    by_sae: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_sae.setdefault(row["sae"], []).append(row)
    generator = random.Random(0)
    for _ in range(draws):
        yield [row for of in by_sae.values() for row in generator.choices(of, k=len(of))]


def _judge(work: Path) -> Any:
    for path in sorted(work.glob("*/evals/*/*.record.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        if (judge := told.get("extras", {}).get("judge")) is not None:
            return judge
    return None


if __name__ == "__main__":
    main()
