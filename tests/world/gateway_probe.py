"""A logits processor that changes nothing and writes down what requests ask of the engine."""

import json
import os
from pathlib import Path

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor
except ImportError:  # collected where vLLM is not installed
    LogitsProcessor = object

from tests.world.vllm_lab import PROBE_VARIABLE


class Probe(LogitsProcessor):
    @classmethod
    def validate_params(cls, params):
        line = json.dumps({"extra_args": params.extra_args, "temperature": params.temperature})
        with Path(os.environ[PROBE_VARIABLE]).open("a") as file:
            file.write(line + "\n")

    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def is_argmax_invariant(self):
        return True

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        return logits
