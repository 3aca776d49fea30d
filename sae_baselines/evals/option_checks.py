"""What can be wrong with a suite's options, before anything is run."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from sae_baselines.errors import did_you_mean
from sae_baselines.evals.suite import Subject


def validated(config_class: Any, options: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """SAEBench's config of the options, or None and what it refuses.

    Args:
        config_class: SAEBench's (pydantic) dataclass.
        options: The suite's options.
    """
    try:
        return config_class(**options), []
    except ValidationError as error:
        return None, [
            f"{'.'.join(map(str, each['loc']))}: {each['input']!r}: {each['msg']}"
            for each in error.errors()
        ]


def name_problems(option: str, given: Sequence[Any], known: Collection[Any]) -> Iterator[str]:
    """Names that are unknown, given twice, or missing altogether."""
    if not given:
        yield f"{option}: is empty; leave it out for the default"
    for value in dict.fromkeys(given):
        if value not in known:
            hint = did_you_mean(str(value), [str(each) for each in known])
            yield f"{option}: {value!r} is unknown to SAEBench; {hint}"
        elif given.count(value) > 1:
            yield f"{option}: {value!r} is given twice and would count twice; give it once"


def size_problems(
    option: str, given: Sequence[int], subject: Subject, written: Collection[int] = ()
) -> Iterator[str]:
    """Numbers of latents that the SAEs do not have or whose results are not written.

    Args:
        option: Name of the option.
        given: Its value.
        subject: The SAEs.
        written: Sizes that SAEBench has fields for: it drops other results without a word.
            Empty if it has them for all.
    """
    if not given:
        yield f"{option}: is empty; leave it out for the default"
    for size in given:
        if not 1 <= size <= subject.d_sae:
            yield (
                f"{option}: {size} is not between 1 and the {subject.d_sae} latents of the "
                "smallest SAE; choose others"
            )
        elif written and size not in written:
            sizes = ", ".join(map(str, sorted(written)))
            yield f"{option}: {size} has no place in SAEBench's results; choose from {sizes}"


def written_sizes(metrics_class: Any) -> list[int]:
    """Numbers of latents that one of SAEBench's metric dataclasses has fields for."""
    fields = metrics_class.__dataclass_fields__
    return sorted({int(n) for field in fields for n in re.findall(r"_(\d+)(?=_|$)", field)})


def positive_problems(config: Any, *names: str) -> Iterator[str]:
    """Fields that must be positive and are not."""
    for name in names:
        value = getattr(config, name)
        if value <= 0:
            yield f"{name}: {value} is not positive"


def block_problems(subject: Subject) -> Iterator[str]:
    """A hook from whose name SAEBench cannot tell the layer."""
    if not subject.hook_name.startswith("blocks."):
        yield (
            f"hook_name: {subject.hook_name!r} is outside the blocks of the language model, "
            "where SAEBench cannot follow; train on blocks.<layer>.<hook>"
        )
