"""A student's own model class, for where circuitsearch is not installed.

`VisionEncoderDecoderModel` looks its decoder up in the Auto classes and passes them no
`trust_remote_code`, so a checkpoint with a decoder class of its own needs a model class of its own.
These two are the stock ones with the decoder named. This file and `modeling.py` travel with every
student, and the `auto_map` in its config.json names them:

    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)

They use torch and transformers only, and register nothing: where circuitsearch is installed too,
its own classes stay what the Auto classes know.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.configuration_utils import SubConfigSpec

from .modeling import CircuitMBartConfig, CircuitMBartForCausalLM

__all__ = ["CircuitStudent", "CircuitStudentConfig"]


class CircuitStudentConfig(VisionEncoderDecoderConfig):  # type: ignore[misc]
    """`VisionEncoderDecoderConfig` whose decoder is a student's."""

    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="donut-swin"),
        "decoder": SubConfigSpec(config_class=CircuitMBartConfig),
    }


class CircuitStudent(VisionEncoderDecoderModel):  # type: ignore[misc]
    """`VisionEncoderDecoderModel` whose decoder is a student's."""

    config_class = CircuitStudentConfig

    def __init__(self, config: Any = None, encoder: Any = None, decoder: Any = None) -> None:
        """Build what is not given, as the stock class does."""
        if decoder is None and config is not None:
            decoder = CircuitMBartForCausalLM._from_config(config.decoder)
        super().__init__(config, encoder=encoder, decoder=decoder)
