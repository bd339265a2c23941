"""One request to an API in OpenAI's dialect: what came back, in raw bytes, or what went wrong.

Over the `openai` SDK (the extra `api`), without its retries: each attempt is a record of ours. The
key is known to this module only, and is struck out of whatever an API sends back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from provenance.errors import DataError, MissingExtraError, UsageError, clean
from provenance.keys.secrets import run_key_command
from provenance.suspect.collect.settings import KEY_VARIABLE, CollectSettings

TOO_LONG: Final = "too-long"
"""What `lost` says of an answer that a ledger cannot hold; its bytes are not kept."""
_NO_KEY: Final = "none"
"""What a server on this machine is sent if nobody gave a key: the SDK insists on one."""
_STRUCK_OUT: Final = b"[the API key]"
_LONGEST_WAIT: Final = 86_400.0
_MAXIMUM_BODY: Final = 1 << 25
_SHORTEST_KEY: Final = 8


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Attributes
    ----------
    status, body : of the answer; 0 and empty if none came
    request_id : the API's own name of the request; empty if it gave none
    retry_after : seconds that the API asks to wait; None if it does not ask
    lost : why no answer came: timeout, disconnected, unreachable, or TOO_LONG; empty if one came
    sent : whether the API may have seen the request, and charge for it
    """

    status: int = 0
    body: bytes = b""
    request_id: str = ""
    retry_after: float | None = None
    lost: str = ""
    sent: bool = True


class Client:
    """Asks. Use it in an `async with` statement, inside one event loop.

    Raises MissingExtraError without the SDK; UsageError, DataError, StorageError for the key.
    """

    def __init__(self, settings: CollectSettings) -> None:
        self._sdk = load_sdk()
        self._settings = settings
        key = read_key(settings)
        self._key = key.encode("ascii")
        self._client = self._sdk.AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url,
            max_retries=0,
            timeout=settings.timeout,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """One request, answered or not within the time that it may take."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._ask(body)
        except TimeoutError:
            return Reply(lost="timeout")

    async def _ask(self, body: Mapping[str, Any]) -> Reply:
        sdk, rest = self._sdk, dict(body)
        model = rest.pop("model")
        try:
            if "messages" in rest:
                ask = self._client.chat.completions.with_raw_response.create
                raw = await ask(model=model, messages=rest.pop("messages"), extra_body=rest)
            else:
                ask = self._client.completions.with_raw_response.create
                raw = await ask(model=model, prompt=rest.pop("prompt"), extra_body=rest)
            return self._reply(raw.status_code, raw.content, raw.headers)
        except sdk.APIStatusError as error:
            return self._reply(error.status_code, error.response.content, error.response.headers)
        except sdk.APITimeoutError:
            return Reply(lost="timeout")
        except sdk.APIConnectionError as error:
            unsent = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            return Reply(lost="unreachable" if unsent else "disconnected", sent=not unsent)

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> Reply:
        name = headers.get("x-request-id") or headers.get("request-id") or ""
        if len(self._key) >= _SHORTEST_KEY:
            for spelt in (self._key, self._key.replace(b"/", rb"\/")):
                body = body.replace(spelt, _STRUCK_OUT)
            name = name.replace(self._key.decode("ascii"), _STRUCK_OUT.decode("ascii"))
        name = clean(name)[:128]
        if len(body) > _MAXIMUM_BODY:
            return Reply(status, b"", name, lost=TOO_LONG)
        return Reply(status, body, name, read_retry_after(headers))


def load_sdk() -> Any:
    """The `openai` package. Raises MissingExtraError."""
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError(
            "collecting from an API must have the openai package; it does not import.",
            "api",
            "make a batch with `provenance collect prepare`",
        ) from error
    return openai


def read_key(settings: CollectSettings) -> str:
    """The API's key, from the command or the variable that the settings name.

    Raises UsageError if there is none, DataError if it is no key, StorageError for the command.
    """
    if settings.api_key_cmd:
        place, found = "--api-key-cmd", run_key_command(settings.api_key_cmd, "--api-key-cmd")
        text = found.decode("ascii", "replace").strip()
    else:
        place = settings.api_key_env or KEY_VARIABLE
        text = os.environ.get(place, "").strip()
        if not text and settings.is_loopback and not settings.api_key_env:
            return _NO_KEY
    if not text:
        raise UsageError(
            f"{clean(place)[:80]}: must give the API's key; it is empty. Export the variable, or "
            "name another with --api-key-env."
        )
    if not (text.isascii() and text.isprintable() and " " not in text and len(text) <= 1 << 13):
        raise DataError("the API's key must be one word of printable ASCII; it is not.")
    return text


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds or a date); None without.

    >>> read_retry_after({"retry-after": "1.5"})
    1.5
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if seconds == seconds:
            return min(max(seconds, 0.0), _LONGEST_WAIT)
    return None
