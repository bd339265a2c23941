"""A local API in OpenAI's dialect that misbehaves on request and counts what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler", dict[str, Any], int], bool]
"""Handler, body, how often this prompt was asked before -> whether the answer was taken over."""


class Server(ThreadingHTTPServer):
    """asked, answered : requests and whole answers of a prompt; bodies, headers : of all"""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, act: Act) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.act = act
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.busy = self.most_busy = 0
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = prompt_of(body)
        server = self.server
        with server.guard:
            before = server.asked[prompt]
            server.asked[prompt] += 1
            server.bodies.append(body)
            server.headers.append({n.lower(): v for n, v in self.headers.items()})
            server.times.append(time.monotonic())
            server.busy += 1
            server.most_busy = max(server.busy, server.most_busy)
        try:
            if not server.act(self, body, before):
                self.answer(body)
        finally:
            with server.guard:
                server.busy -= 1

    def answer(self, body: dict[str, Any], **changed: Any) -> None:
        self.reply(200, json.dumps({**answer_of(self.path, body), **changed}).encode())
        with self.server.guard:
            self.server.answered[prompt_of(body)] += 1

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        kind = headers.pop("content_type", "application/json")
        self.send_header("content-type", kind)
        self.send_header("content-length", headers.pop("length", str(len(content))))
        self.send_header("x-request-id", f"req-{len(self.server.bodies)}")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


def prompt_of(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return body["prompt"]
    return str(body["messages"][-1]["content"]) + f"/{body.get('seed', '')}"


def answer_of(path: str, body: dict[str, Any]) -> dict[str, Any]:
    said = f"An answer to {prompt_of(body)} that is long enough to be read."
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    words = [word + " " for word in said.split(" ")]
    words[-1] = words[-1].strip()
    if path.endswith("/chat/completions"):
        choice["message"] = {"role": "assistant", "content": said}
        if body.get("logprobs"):
            choice["logprobs"] = {
                "content": [
                    {
                        "token": word,
                        "logprob": -0.5,
                        "bytes": list(word.encode()),
                        "top_logprobs": [{"token": word, "logprob": -0.5}],
                    }
                    for word in words
                ]
            }
    else:
        choice["text"] = said
        if "logprobs" in body:
            choice["logprobs"] = {
                "tokens": words,
                "token_logprobs": [-0.5] * len(words),
                "top_logprobs": [{word: -0.5} for word in words],
            }
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"] + "-0613",
        "system_fingerprint": "fp_1",
        "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18},
    }


def behave(_handler: Handler, _body: dict[str, Any], _before: int) -> bool:
    return False


@contextmanager
def serve(act: Act = behave) -> Iterator[Server]:
    with Server(act) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
