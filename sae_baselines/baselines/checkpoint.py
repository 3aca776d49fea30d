"""A training checkpoint of a baseline, loaded by SAELens' `SAE.load_from_disk`.

SAELens looks an architecture up among its inference classes, which stock training checkpoints
of, say, TopK share with the SAEs that are exported of them. What is registered there for a
baseline turns its checkpoint into what it would have been exported as.
"""

from typing import Any

from sae_lens import register_sae_class
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata, TrainingSAE, TrainingSAEConfig

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
        # Bases answer with a class of theirs; none looks at its fields.
        exported = config_class.get_inference_config_class(object.__new__(config_class))
        inference_class, inference_config = get_sae_class(exported.architecture())
    except (KeyError, AttributeError):
        return

    class Checkpoint(inference_class):
        """Becomes the base's own inference class once it has seen the weights."""

        def __init__(self, cfg: TrainingSAEConfig, use_error_term: bool = False) -> None:
            described = cfg.get_inference_sae_cfg_dict()
            del described["architecture"]
            metadata = SAEMetadata(**described.pop("metadata"))
            super().__init__(inference_config(**described, metadata=metadata), use_error_term)
            vars(self)["training"] = sae_class(cfg)  # no part of the module

        def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
            training = vars(self).pop("training")
            training.process_state_dict_for_loading(state_dict)
            training.load_state_dict(state_dict, assign=True)
            state_dict.clear()
            state_dict.update(training.state_dict())
            training.process_state_dict_for_saving_inference(state_dict)
            self.__class__ = inference_class  # type: ignore[assignment]

    Checkpoint.__name__ = Checkpoint.__qualname__ = f"{sae_class.__name__}Checkpoint"
    register_sae_class(name, Checkpoint, config_class)
