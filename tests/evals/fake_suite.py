"""A suite with every bad habit SAEBench has, quick enough to test the runner's answers."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from transformer_lens import HookedTransformer

from sae_baselines.evals.measured import HIGHER, Measured
from sae_baselines.evals.metrics import Margin, Metric, with_floors
from sae_baselines.evals.suite import Extras, Subject, Suite, SuiteCall


class FakeSuite(Suite):
    """Scores an SAE by its weights and by random numbers.

    The first SAE finds no cache and draws random numbers while it fills it, which moves every
    later draw: SAEBENCH's order trap. Options make it fail in the ways suites fail.
    """

    name = "fake"
    summary = "for tests"
    primary = ("score",)
    warm_up = True

    def defaults(self) -> dict[str, Any]:
        return {"fail_on": "", "silent_on": "", "nan_on": "", "kill_on": "", "load": False}

    def problems(self, subject: Subject, options: Mapping[str, Any]) -> Iterable[str]:
        del subject
        if options["fail_on"] == "early":
            yield "fail_on: 'early' is refused; name an SAE"

    def run(self, sae: SAE[Any], call: SuiteCall) -> Extras:
        print("chatter")
        if call.options["load"]:
            model = HookedTransformer.from_pretrained_no_processing(
                call.subject.model_name, device="cpu"
            )
            (call.work / "loaded").write_text(str(id(model)))
        probe = call.cache / "probe"
        if not probe.exists():
            probe.write_text(str(torch.rand(()).item()))
            random.random()
            np.random.rand()
        with (call.cache / "runs").open("a") as file:
            file.write(f"{call.name}\n")
        if call.options["fail_on"] == call.name:
            raise ValueError("it broke\nbadly")
        if call.options["kill_on"] == call.name:
            (call.work / "partial").write_text("half")
            raise KeyboardInterrupt
        if call.options["silent_on"] == call.name:
            return Extras()
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        score = float(sae.W_dec.detach().double().abs().sum()) + noise
        payload = {"score": float("nan") if call.options["nan_on"] == call.name else score}
        Path(call.expected).write_text(json.dumps(payload))
        return Extras({"resumed": (call.work / "partial").exists()}, ["a note"])

    def rows(self, payload: Mapping[str, Any], extras: Mapping[str, Any]) -> list[Measured]:
        del extras
        return [
            Measured("score", payload["score"], HIGHER, n=2),
            Measured("score", payload["score"] - 1, HIGHER, task="a"),
            Measured("score", payload["score"] + 1, HIGHER, task="b"),
            Measured("aside", 1.0),
        ]


class FlooredSuite(FakeSuite):
    """The same with a floor, which depends on the seed and the SAE."""

    name = "floored"
    metrics = with_floors(
        Metric("score", HIGHER, "Score", margin=Margin(0.1, "Of a test.")),
        {"noise": "noise"},
    )

    def floors(self, sae: SAE[Any], call: SuiteCall) -> list[Measured]:
        del call
        drawn = float(torch.rand(())) + float(sae.W_dec.detach().double().sum())
        return [
            Measured("score_null_noise", drawn),
            Measured("score_null_noise", drawn, task="a"),
        ]
