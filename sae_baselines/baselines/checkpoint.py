"""A training checkpoint of a baseline, loaded by SAELens' `SAE.load_from_disk`.

SAELens looks an architecture up among its inference classes, which stock training checkpoints
of, say, TopK share with the SAEs that are exported of them. What is registered there for a
baseline turns its checkpoint into what it would have been exported as.
"""

from functools import partial
from typing import Any

from sae_lens import register_sae_class
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAE, SAEMetadata, TrainingSAE, TrainingSAEConfig

from sae_baselines.compat.saes import SAE_CLASS_REGISTRY


def register_checkpoint(
    name: str, sae_class: type[TrainingSAE[Any]], config_class: type[TrainingSAEConfig]
) -> None:
    """Let ``SAE.load_from_disk`` read training checkpoints of an architecture.

    Nothing where its base has no inference class: there is nothing to load them as.
    """
    if name in SAE_CLASS_REGISTRY:
        return
    try:
        # Bases answer with a class of theirs; none needs a field that has no default.
        exported = config_class.get_inference_config_class(object.__new__(config_class))
        inference_class, _ = get_sae_class(exported.architecture())
    except (KeyError, AttributeError):
        return

    class Checkpoint(inference_class):
        """Becomes the base's own inference class, and takes the weights of a training SAE."""

        def __init__(self, cfg: TrainingSAEConfig, use_error_term: bool = False) -> None:
            described = cfg.get_inference_sae_cfg_dict()
            # Which one may depend on a field: a transcoder's skip.
            becomes, config = get_sae_class(described.pop("architecture"))
            metadata = SAEMetadata(**described.pop("metadata"))
            self.__class__ = becomes  # type: ignore[assignment]
            becomes.__init__(self, config(**described, metadata=metadata))
            self.use_error_term = use_error_term
            exporting = partial(_as_exported, self, sae_class(cfg))
            vars(self)["process_state_dict_for_loading"] = exporting  # no part of the module

    Checkpoint.__name__ = Checkpoint.__qualname__ = f"{sae_class.__name__}Checkpoint"
    register_sae_class(name, Checkpoint, config_class)


def _as_exported(sae: SAE[Any], training: TrainingSAE[Any], state_dict: dict[str, Any]) -> None:
    """Make weights of a checkpoint what they would have been exported as, in place."""
    del vars(sae)["process_state_dict_for_loading"]
    training.process_state_dict_for_loading(state_dict)
    training.load_state_dict(state_dict, assign=True)
    state_dict.clear()
    state_dict.update(training.state_dict())
    training.process_state_dict_for_saving_inference(state_dict)
