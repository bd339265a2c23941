"""A tiny language model behind an API in OpenAI's dialect: trigrams of tokens, trained by counting.

What it was trained on is in it as in any model: a token follows two others as often as it did in
its training data. So one that counted marked responses is a suspect, and its twin is innocent.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_SHIFT = 21


class TrigramModel:
    """Draws each token among those that followed the same two tokens in the training data."""

    def __init__(self, tokenizer: Tokenizer, responses: Sequence[NDArray[np.int64]]) -> None:
        self.tokenizer = tokenizer
        flat = np.concatenate(responses)
        inside = np.concatenate([np.arange(ids.shape[0]) >= 2 for ids in responses])
        keys = (np.roll(flat, 2) << _SHIFT) + np.roll(flat, 1)
        order = np.argsort(keys[inside], kind="stable")
        self._keys, self._next = keys[inside][order], flat[inside][order]

    def respond(self, prompt: str, seed: int, length: int) -> str:
        """A text that goes on after the prompt."""
        generator = np.random.default_rng([zlib.crc32(prompt.encode()), seed])
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids[-2:]
        start = len(ids)
        while len(ids) < start + length:
            key = (ids[-2] << _SHIFT) + ids[-1] if len(ids) > 1 else -1
            first, end = np.searchsorted(self._keys, [key, key + 1])
            if first == end:  # nobody ever went on from here: begin anew
                place = int(generator.integers(self._keys.shape[0]))
                ids += [int(self._keys[place]) & ((1 << _SHIFT) - 1), int(self._next[place])]
            else:
                ids.append(int(self._next[generator.integers(first, end)]))
        return str(self.tokenizer.decode(ids[start : start + length]))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = str(body["messages"][-1]["content"])
        seed, length = int(body.get("seed", 0)), int(body.get("max_tokens", 64))
        text = self.server.models[body["model"]].respond(prompt, seed, length)  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "length", "message": message}
        usage = {"prompt_tokens": 9, "completion_tokens": length, "total_tokens": 9 + length}
        answer = {
            "id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [choice], "usage": usage,
        }  # fmt: skip
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_models(models: dict[str, TrigramModel]) -> Iterator[str]:
    """The address of an API that answers for these models, by their names."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.models = models  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()
