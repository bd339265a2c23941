"""A headless Chromium for tests, driven through its debugging pipe; no package needed.

What is asked of it goes through the DevTools protocol: null-terminated JSON on file descriptors 3
and 4. Scripts that a test evaluates run beside the page's own policy, as a reader's eye would.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_SECONDS = 60
_MOVE = """
import os, sys
high = [os.dup2(int(number), 100 + i) for i, number in enumerate(sys.argv[1:3])]
for i, end in enumerate(high):
    os.dup2(end, 3 + i)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Moves the two pipes to the descriptors 3 and 4 that Chromium listens on, then becomes it."""


class Browser:
    """One Chromium with one page; a context manager.

    Attributes
    ----------
    events : every event of the page so far: console messages, exceptions, requests
    """

    def __enter__(self) -> Browser:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        assert CHROMIUM is not None
        self.events: list[dict[str, Any]] = []
        self._number, self._buffer = 0, b""
        self._stack = ExitStack()
        profile = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="provenance-chromium-", ignore_cleanup_errors=True)
        )
        their_input, self._to = os.pipe()
        self._from, their_output = os.pipe()
        for descriptor in (self._to, self._from):
            self._stack.callback(os.close, descriptor)
        command = [
            *(sys.executable, "-c", _MOVE, str(their_input), str(their_output), CHROMIUM, *FLAGS),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(their_input, their_output),
        )
        self._stack.callback(self._stop)
        for descriptor in (their_input, their_output):
            os.close(descriptor)
        os.set_blocking(self._from, False)
        targets = self._call("Target.getTargets", session=False)["targetInfos"]
        (page, *_) = [target["targetId"] for target in targets if target["type"] == "page"]
        self._session = self._call(
            "Target.attachToTarget", session=False, targetId=page, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def open(self, path: Path, width: int = 1000, height: int = 1400) -> None:
        """Load a file, and wait until it is there."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.events.clear()
        self._call("Page.navigate", url=path.absolute().as_uri())
        self._wait(self._has_loaded)

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def print_pdf(self) -> bytes:
        """The page as a PDF on the paper that its style asks for."""
        found = self._call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(found["data"])

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Console messages, log entries and exceptions of the page."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in names]

    @property
    def requests(self) -> list[str]:
        """URLs that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _has_loaded(self) -> bool:
        self._read()
        return any(event["method"] == "Page.loadEventFired" for event in self.events)

    def _call(self, method: str, session: bool = True, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            answers.extend(m for m in self._read() if m.get("id") == self._number)
            return bool(answers)

        self._wait(answered)
        assert "error" not in answers[0], answers[0]
        return dict(answers[0]["result"])

    def _read(self) -> list[dict[str, Any]]:
        """Messages that have come; events are kept."""
        try:
            while block := os.read(self._from, 1 << 20):
                self._buffer += block
        except BlockingIOError:
            pass
        *parts, self._buffer = self._buffer.split(b"\0")
        messages = [json.loads(part) for part in parts]
        self.events += [message for message in messages if "method" in message]
        return messages

    def _wait(self, ready: Any) -> None:
        deadline = time.monotonic() + _SECONDS
        while not ready():
            assert time.monotonic() < deadline, "Chromium did not answer"
            time.sleep(0.01)

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
