"""`provenance collect` against a real vLLM server, killed several times on the way.

    python -m benchmarks.serving.collecting        needs vLLM and the openai package; 4 minutes

A tiny model answers; the collecting process is killed (SIGKILL) after a random time and started
again with the same command until it ends by itself. Afterwards the ledger is verified, every prompt
must have its answers, no answered item may have been asked again, and the server's own count of
finished requests bounds what was paid twice: at most what was under way at a kill.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import provenance as pv
from provenance.storage.files import write_json
from tests.world.vllm_lab import MODEL_NAME, ROOT, make_model, run_server

RESULT = ROOT / "benchmarks" / "results" / "collecting.json"
TOKENIZER = ROOT / "fixtures" / "keys" / "tokenizer.json"
PROMPTS, SAMPLES, CONCURRENCY, KILLS, SEED = 300, 2, 8, 6, 3


def main() -> None:
    """Serve, collect, kill, go on, count."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        size = json.loads((ROOT / "fixtures/keys/keyring.json").read_text())["vocabulary_size"]
        make_model(work / "model", TOKENIZER, size)
        prompts = [json.dumps({"prompt": f"def function_{i}(x):"}) for i in range(PROMPTS)]
        (work / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
        with run_server(work / "model", work / "no-keys", work / "log", processor=None) as server:
            started = time.monotonic()
            kills = _collect(work, f"http://127.0.0.1:{server.port}/v1")
            seconds = time.monotonic() - started
            finished = _count_finished(server.port)
        result = {
            "command": "python -m benchmarks.serving.collecting",
            "prompts": PROMPTS,
            "samples": SAMPLES,
            "concurrency": CONCURRENCY,
            "kills": kills,
            "seconds": round(seconds, 1),
            **_read_ledger(work / "outputs"),
            "finished_by_the_server": finished,
        }
    write_json(RESULT, result)
    print(json.dumps(result, indent=1))


def _collect(work: Path, url: str) -> int:
    """Run until it ends by itself; how often it was killed before."""
    generator = np.random.default_rng(SEED)
    command = [sys.executable, "-m", "provenance", "collect", "--base-url", url]
    command += ["--model", MODEL_NAME, "--prompts", str(work / "prompts.jsonl")]
    command += ["-o", str(work / "outputs"), "--n", str(SAMPLES), "--option", "max_tokens=64"]
    command += ["--concurrency", str(CONCURRENCY)]
    for kills in range(KILLS + 1):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
        if kills < KILLS:
            time.sleep(float(generator.uniform(4, 12)))
            if process.poll() is None:
                process.kill()
                process.communicate()
                continue
        _, words = process.communicate()
        if process.returncode:
            raise RuntimeError(words.decode())
        return kills
    raise AssertionError("the last run is not killed")


def _count_finished(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r"^vllm:request_success_total\{[^}]*\} ([\d.e+]+)", text, re.MULTILINE)
    return int(sum(map(float, found)))


def _read_ledger(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    asked: Counter[str] = Counter()
    answered: set[str] = set()
    again = 0
    for line in lines:
        if line["kind"] == "asked":
            again += line["item"] in answered
            asked[line["item"]] += 1
        elif line["kind"] == "answered" and line["settled"]:
            answered.add(line["item"])
    return {
        "chain_breaks": len(pv.verify_collection(folder).breaks),
        "items_answered": len(answered),
        "requests": sum(asked.values()),
        "unknown_after_kills": sum(line["kind"] == "unknown" for line in lines),
        "answered_and_asked_again": again,
        "outputs": len((folder / "outputs.jsonl").read_text().splitlines()),
    }


if __name__ == "__main__":
    main()
