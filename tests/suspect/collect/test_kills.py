"""kill -9, again and again: nothing is lost, and no answered request is asked once more.

The server counts; the ledger must agree with it at every kill. Two wrong doubles must fail.
"""

import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import pytest

import provenance
from tests.suspect.collect.server import serve
from tests.suspect.collect.test_collect import write_prompts

pytest.importorskip("openai")

ROOT = Path(__file__).parents[3]
CHILD = Path(__file__).with_name("child.py")


def _slow(_handler, _body, before):
    time.sleep(0.03)
    return False


def _spiteful(handler, body, before):
    """Slow, and at times busy, broken or gone."""
    time.sleep(0.02)
    fate = zlib.crc32(f"{body['messages'][-1]['content']} {before}".encode()) % 10
    if before >= 4:
        return False
    if fate == 0:
        handler.reply(500, b"{}")
    elif fate == 1:
        handler.reply(429, b"{}", retry_after_ms="20")
    elif fate == 2:
        handler.hang_up()
    elif fate == 3:
        handler.reply(200, b'{"half')
    else:
        return False
    return True


def _start(server, prompts, folder, double):
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    environment.pop("OPENAI_API_KEY", None)
    return subprocess.Popen(
        [sys.executable, CHILD, server.url, prompts, folder, double],
        env=environment,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )


def _records(folder):
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _check(server, folder):
    """The server's counts against the ledger's: what is asked is written, what is answered ends."""
    asked, answered = Counter(), set()
    for record in _records(folder):
        item = record.get("item")
        if record["kind"] == "asked":
            assert item not in answered, f"{item} was asked again after its answer"
            asked[item] += 1
        elif record["kind"] == "answered" and record["settled"]:
            answered.add(item)
    with server.guard:
        received = dict(server.asked)
    for prompt, count in received.items():
        item = f"{int(prompt.split()[1].strip('/')) + 1}-0"
        assert count <= asked[item], f"{item} reached the server without a record"
    return answered


def _survive(tmp_path, act, kills, count, double=""):
    """Kill a collecting process so often, then let it end; the checks after every kill."""
    prompts = write_prompts(tmp_path / "p.jsonl", count)
    folder, chance = tmp_path / "out", random.Random(7)
    with serve(act) as server:
        for _ in range(kills):
            child = _start(server, prompts, folder, double)
            goal = sum(server.asked.values()) + max(1, count // (kills + 1) - 2)
            while sum(server.asked.values()) < goal and child.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            child.kill()
            child.communicate()
            time.sleep(0.1)  # the server's last threads
            _check(server, folder)
        child = _start(server, prompts, folder, double)
        _, said = child.communicate(timeout=120)
        assert child.returncode == 0, said.decode()
        assert len(_check(server, folder)) == count
        found = provenance.verify_collection(folder)
        assert not found.breaks
        assert found.facts["answered"] == count
        requests = sum(server.asked.values())
        assert found.facts["requests"] >= requests
    outputs = (folder / "outputs.jsonl").read_bytes().splitlines()
    assert len(outputs) == count
    return found, server


def test_five_kills_lose_nothing_and_repeat_nothing(tmp_path):
    found, server = _survive(tmp_path, _slow, 5, 60)
    # a request under way at a kill is asked again: at most those of four slots
    assert sum(server.asked.values()) <= 60 + 5 * 4
    assert found.facts["unknown"] <= 5 * 4


@pytest.mark.slow
def test_thirty_kills_lose_nothing_and_repeat_nothing(tmp_path):
    found, server = _survive(tmp_path, _spiteful, 30, 300)
    assert found.facts["unknown"] <= 30 * 4
    assert sum(server.asked.values()) <= found.facts["requests"]


@pytest.mark.parametrize("double", ["after", "again"])
def test_doubles_that_record_too_late_or_ask_again_are_found_out(tmp_path, double):
    with pytest.raises(AssertionError, match=r"without a record|asked again|asked already"):
        _survive(tmp_path, _slow, 3, 40, double)
