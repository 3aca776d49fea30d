"""Do other seeds find the same latents? Dictionaries of a study held against one another.

Everything is measured on latents that fire on held-out text. A direction has a best match in
any dictionary, a random one too, so beside each number stands what random directions give: the
closed form for directions uniform on the sphere (`drift.sphere`), simulations of these, and
simulations of directions with the dictionaries' own covariance, which crowd where theirs do.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from sae_baselines.drift.sphere import chance_of_best, expected_best_cosine
from sae_baselines.files import read_json, reading, write_sealed
from sae_baselines.progress import progress
from sae_baselines.study.folder import StudyFolder
from sae_baselines.study.identity import WEIGHTS
from sae_baselines.study.latents import Latents, decades
from sae_baselines.study.plan import MemberKey, all_members
from sae_baselines.study.spec import StudySpec

STABILITY_FILE = "stability.json"
# A latent reappears where another seed has one at more than this cosine.
REAPPEARS = 0.7
NEAR = 0.9
# Latents of one side in a one-to-one matching, whose cost grows with their square, and of
# simulated dictionaries.
SAMPLE = 500
_AGAIN = "delete it and run sae-baselines latents on the study"
_CELLS = 8_000_000


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Latents of one SAE that fire.

    Attributes:
        rows: Unit decoder rows, float32 ``[m, d_in]``.
        rates: How often each fires, ``[m]``.
        acts: Their activations on the first held-out tokens, ``[n_tokens, m]``.
    """

    rows: torch.Tensor
    rates: np.ndarray
    acts: csr_array

    @classmethod
    def read(cls, folder: Path) -> "Dictionary":
        """Of a measured member.

        Raises:
            UserError: Its weights cannot be read.
        """
        latents = Latents.load(folder)
        assert latents is not None
        path = folder / SAE_WEIGHTS_FILENAME
        with reading(path):
            decoder = load_file(path)["W_dec"].float()
        norms = decoder.norm(dim=1)
        alive = (latents.firings > 0) & (norms > 0).numpy()
        acts = csr_array(
            (latents.values, latents.indices, latents.rows),
            shape=(len(latents.rows) - 1, len(decoder)),
        )
        kept = torch.from_numpy(alive)
        rows = decoder[kept] / norms[kept, None]
        return cls(rows, latents.rates[alive], csr_array(acts.tocsc()[:, alive]))

    @cached_property
    def second_moment(self) -> torch.Tensor:
        """Of its rows, ``[d_in, d_in]``."""
        return (self.rows.T @ self.rows / len(self.rows)).double()

    @cached_property
    def subspace(self) -> torch.Tensor:
        """The tenth of all dimensions in which its rows lie most, ``[d_in, d_in // 10]``."""
        width = max(1, self.rows.shape[1] // 10)
        return torch.linalg.eigh(self.second_moment)[1][:, -width:]


def best_matches(rows: torch.Tensor, others: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Largest cosine of each unit row with any of the others, ``[m]``, and with which."""
    step = max(1, _CELLS // len(others))
    found = [(chunk @ others.T).max(dim=1) for chunk in rows.split(step)]
    best = torch.cat([f.values for f in found]).clamp(-1, 1).numpy()
    return best, torch.cat([f.indices for f in found]).numpy()


def agreement(first: Dictionary, second: Dictionary, seed: int = 0) -> dict[str, Any]:
    """How alike two dictionaries are: means of both directions.

    Args:
        first: One.
        second: Another, of the same space.
        seed: Of samples and shuffles.

    Returns:
        ``best``, mean cosine of the best match; ``reappear`` and ``near``, shares above 0.7 and
        0.9; ``one_to_one``, mean cosine where no two latents may have the same match, of
        `SAMPLE` latents against all; ``activations``, mean correlation of a latent's
        activations with those of its best match on the same tokens, and
        ``activations_shuffled`` with the match of another latent of like rate; ``subspace``,
        the share of one's main subspace in the other's. With ``_chance`` behind the name the
        closed form for random directions, where there is one; with ``_random`` and
        ``_covariance`` simulations. ``by_rate``: per decade of the rate, latents and how many
        of them reappear.
    """
    ways = [_one_way(a, b, [seed, i]) for i, (a, b) in enumerate(_both(first, second))]
    names = [name for name in ways[0] if name != "by_rate"]
    found: dict[str, Any] = {n: float(np.mean([way[n] for way in ways])) for n in names}
    overlap = first.subspace.T @ second.subspace
    found["subspace"] = float(overlap.pow(2).sum() / len(overlap))
    found["subspace_chance"] = len(overlap) / first.rows.shape[1]
    decades = {d for way in ways for d in way["by_rate"]}
    found["by_rate"] = {
        d: [sum(way["by_rate"].get(d, (0, 0))[i] for way in ways) for i in (0, 1)]
        for d in sorted(decades, key=int)
    }
    return found


def _both(a: Dictionary, b: Dictionary) -> Iterable[tuple[Dictionary, Dictionary]]:
    return (a, b), (b, a)


def _one_way(first: Dictionary, second: Dictionary, seed: list[int]) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    best, match = best_matches(first.rows, second.rows)
    n, m = second.rows.shape[1], len(second.rows)
    found: dict[str, Any] = _summary(best)
    chosen = random.permutation(len(first.rows))[:SAMPLE]
    found["one_to_one"] = _one_to_one(first.rows[chosen], second.rows)
    found |= {
        "best_chance": expected_best_cosine(n, m),
        "reappear_chance": float(chance_of_best(n, m, REAPPEARS)),
        "near_chance": float(chance_of_best(n, m, NEAR)),
    }
    plain = torch.eye(n, dtype=torch.float64)
    for name, roots in (
        ("random", (plain, plain)),
        ("covariance", (_root(first.second_moment), _root(second.second_moment))),
    ):
        rows, others = (
            _unit(random, k, root) for k, root in zip((len(chosen), m), roots, strict=True)
        )
        drawn = _summary(best_matches(rows, others)[0])
        drawn["one_to_one"] = _one_to_one(rows, others)
        found |= {f"{what}_{name}": value for what, value in drawn.items()}
    decade = decades(first.rates).astype(int)
    shuffled = match.copy()
    for d in np.unique(decade):
        (part,) = np.nonzero(decade == d)
        shuffled[part] = match[random.permutation(part)]
    found["activations"] = _correlation(first.acts, second.acts, match)
    found["activations_shuffled"] = _correlation(first.acts, second.acts, shuffled)
    found["by_rate"] = {
        str(d): (int((decade == d).sum()), int((best[decade == d] > REAPPEARS).sum()))
        for d in np.unique(decade)
    }
    return found


def _summary(best: np.ndarray) -> dict[str, float]:
    return {
        "best": float(best.mean()),
        "reappear": float((best > REAPPEARS).mean()),
        "near": float((best > NEAR).mean()),
    }


def _one_to_one(rows: torch.Tensor, others: torch.Tensor) -> float:
    cosines = (rows[: len(others)] @ others.T).numpy()
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def _root(moment: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp(min=0).sqrt()


def _unit(random: np.random.Generator, m: int, root: torch.Tensor) -> torch.Tensor:
    rows = torch.from_numpy(random.standard_normal((m, len(root)))) @ root.T
    return torch.nn.functional.normalize(rows, dim=1).float()


def _correlation(first: csr_array, second: csr_array, match: np.ndarray) -> float:
    """Mean Pearson correlation of columns with their matches; of those that vary in both."""
    other = csr_array(second.tocsc()[:, match])
    shape: Any = first.shape
    n = shape[0]

    def moments(a: csr_array) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(a.sum(axis=0)).ravel() / n
        return mean, np.asarray(a.multiply(a).sum(axis=0)).ravel() / n - mean**2

    (mean, var), (mean_other, var_other) = moments(first), moments(other)
    both = np.asarray(first.multiply(other).sum(axis=0)).ravel() / n - mean * mean_other
    some = (var > 0) & (var_other > 0)
    if not some.any():
        return 0.0
    return float((both[some] / np.sqrt(var[some] * var_other[some])).mean())


def pairs_of(spec: StudySpec) -> list[tuple[MemberKey, MemberKey]]:
    """Each member with itself in other seeds; the trained one with frozen decoders of all."""
    # Of random language models each seed has another, with nothing in common to find again.
    members = {k: m for k, m in all_members(spec).items() if not m.on_random_model}
    found = [
        (a, b)
        for a, b in combinations(members, 2)
        if a.member == b.member and _group(a) == _group(b)
    ]
    trained = [k for k, m in members.items() if m.constraint == "trained"]
    frozen = [k for k, m in members.items() if m.constraint == "frozen_decoder"]
    return found + [(a, b) for a in trained for b in frozen if _group(a) == _group(b)]


def _group(key: MemberKey) -> tuple[str, float]:
    return key.panel.architecture, key.panel.l0


def measure_stability(spec: StudySpec, root: str | Path) -> list[dict[str, Any]]:
    """Compare dictionaries of a measured study; what is compared already is not repeated.

    Args:
        spec: The study; every member must have its `Latents`.
        root: Its folder, in which ``stability.json`` is written.

    Returns:
        Per pair ``first`` and ``second`` (``panel.member``), their ``weights`` and `agreement`.

    Raises:
        UserError: Weights or an earlier file cannot be read.
    """
    folder, path = StudyFolder(root), Path(root) / STABILITY_FILE
    weights = {k: (folder.measurement(k) or {}).get(WEIGHTS) for k in all_members(spec)}
    known = {(p["first"], p["second"]): p for p in read_stability(root)}
    pairs = pairs_of(spec)
    kept: dict[tuple[str, str], Any] = {}
    missing = []
    for a, b in pairs:
        there = known.get((a.name, b.name))
        if there is not None and there["weights"] == [weights[a], weights[b]]:
            kept[a.name, b.name] = there
        else:
            missing.append((a, b))
    read: dict[MemberKey, Dictionary] = {}
    for a, b in progress(missing, desc="Seeds against seeds", unit="pair"):
        for key in (a, b):
            if key not in read:
                read[key] = Dictionary.read(folder.member(key))
        found = agreement(read[a], read[b])
        names = {"first": a.name, "second": b.name, "weights": [weights[a], weights[b]]}
        kept[a.name, b.name] = {**names, **found}
        write_sealed(path, {"pairs": list(kept.values())})
    return list(kept.values())


def read_stability(root: str | Path) -> list[dict[str, Any]]:
    """What `measure_stability` wrote; empty where it was not run.

    Raises:
        UserError: The file is damaged or was changed.
    """
    found: Mapping[str, Any] = read_json(Path(root) / STABILITY_FILE, _AGAIN) or {}
    return list(found.get("pairs", ()))


@dataclass(frozen=True)
class Nearest:
    """The latent of another SAE whose decoder row is nearest.

    Attributes:
        key: Whose.
        latent: Its index.
        cosine: Of the rows.
    """

    key: MemberKey
    latent: int
    cosine: float


def nearest_latents(
    spec: StudySpec, root: str | Path, wanted: Mapping[MemberKey, Iterable[int]]
) -> dict[tuple[MemberKey, int], list[Nearest]]:
    """For single latents, the nearest of the panel's other members and of other seeds.

    Of latents that fire on held-out text. One decoder is read at a time.

    Args:
        spec: The study; every member must have its `Latents`.
        root: Its folder.
        wanted: Latents by member.

    Raises:
        UserError: Weights cannot be read.
    """
    folder = StudyFolder(root)
    # Of random language models each seed has another, with nothing in common to find again.
    members = [k for k, m in all_members(spec).items() if not m.on_random_model]

    def decoder(key: MemberKey) -> tuple[torch.Tensor, np.ndarray]:
        latents = Latents.load(folder.member(key))
        assert latents is not None
        return _unit_rows(folder.member(key)), latents.firings

    def near(key: MemberKey, other: MemberKey) -> bool:
        alike = key.panel == other.panel or key.member == other.member
        return alike and _group(key) == _group(other)

    return nearest_among({k: partial(decoder, k) for k in members}, wanted, near)


def nearest_among(
    saes: Mapping[MemberKey, Callable[[], tuple[torch.Tensor, np.ndarray]]],
    wanted: Mapping[MemberKey, Iterable[int]],
    near: Callable[[MemberKey, MemberKey], bool] | None = None,
) -> dict[tuple[MemberKey, int], list[Nearest]]:
    """For single latents, the nearest of each other SAE's latents that fire.

    Args:
        saes: Read when it is its turn: unit decoder rows ``[d_sae, d_in]`` and how often each
            latent fires ``[d_sae]``.
        wanted: Latents by SAE.
        near: Whether the second is to be looked at for the first; default: all but itself.
    """
    lists = {k: list(latents) for k, latents in wanted.items() if k in saes}
    own = {k: saes[k]()[0][latents] for k, latents in lists.items()}
    found: dict[tuple[MemberKey, int], list[Nearest]] = {
        (k, i): [] for k, latents in lists.items() for i in latents
    }
    for other, read in saes.items():
        looking = [k for k in own if k != other and (near is None or near(k, other))]
        if not looking:
            continue
        rows, firings = read()
        alive = np.flatnonzero(firings > 0)
        if len(alive) == 0:
            continue
        for k in looking:
            best, match = best_matches(own[k], rows[alive])
            for i, cosine, j in zip(lists[k], best, alive[match], strict=True):
                found[k, i].append(Nearest(other, int(j), float(cosine)))
    return found


def _unit_rows(folder: Path) -> torch.Tensor:
    path = folder / SAE_WEIGHTS_FILENAME
    with reading(path):
        return unit_rows(load_file(path)["W_dec"])


def unit_rows(decoder: torch.Tensor) -> torch.Tensor:
    """Directions of decoder rows ``[d_sae, d_in]``, float32, on the CPU."""
    return torch.nn.functional.normalize(decoder.detach().cpu().float(), dim=1)
