"""Modules that only import beside an optional stack are not collected where it is missing."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("vllm") else ["provenance/embed/vllm_v1.py", "provenance/embed/vllm_v2.py"]
)
