"""How outputs are to be collected: what is asked of which API, how fast, and for how much at most.

The fields say what their options on the command line are called and mean. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from provenance.errors import UsageError

KEY_VARIABLE: Final = "OPENAI_API_KEY"
ENDPOINTS: Final = ("chat", "completions")
_OURS: Final = frozenset(
    {"model", "messages", "prompt", "n", "stream", "logprobs", "top_logprobs", "best_of", "echo"}
)
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_MILLION: Final = 1_000_000


def _option(default: Any, text: str, name: str, kind: Any = str | None) -> Any:
    """A field with the help, the name and the type of its option."""
    return field(default=default, metadata={"option": (name, kind, text)})


@dataclass(frozen=True)
class CollectSettings:
    """What to ask and how; what a collection cannot change once it has begun stands first.

    Attributes
    ----------
    base_url : of an API in OpenAI's dialect, like http://localhost:8000/v1
    model : its name there
    endpoint : chat or completions; a `prompt` is asked as one user message, or as it is
    parameters : of every request, like {"temperature": 1.0, "max_tokens": 512}; of a `seed`, sample
        i of a prompt is asked with seed + i
    samples : outputs per prompt, each asked on its own
    logprobs : how many alternatives to ask for at each token; None: none
    concurrency : requests at once
    timeout : seconds that one request may take, whatever trickles in
    retries : how often a request is tried once more after 429, 5xx, a timeout or a disconnect
    backoff : seconds before the first retry, doubled each time to a minute; Retry-After goes before
    max_tokens_total : of prompts and outputs together; what cannot be known counts as its bound
    price : of a million input tokens and of a million output tokens
    max_spend : in the price's currency
    api_key_env : name of the environment variable that holds the key
    api_key_cmd : a command that prints the key

    Raises
    ------
    UsageError naming what is out of its domain.
    """

    base_url: str = _option("", "Of an API in OpenAI's dialect.", "--base-url")
    model: str = _option("", "Its name there.", "--model")
    endpoint: str = _option("chat", "chat or completions.", "--endpoint")
    parameters: Mapping[str, Any] = _option(
        None, "NAME=VALUE, like max_tokens=512; repeat.", "--option", list[str] | None
    )
    samples: int = _option(1, "Outputs per prompt.", "--n", int | None)
    logprobs: int | None = _option(None, "Alternatives at each token.", "--logprobs", int | None)
    concurrency: int = _option(8, "Requests at once; default 8.", "--concurrency", int | None)
    timeout: float = _option(120.0, "Seconds per request; default 120.", "--timeout", float | None)
    retries: int = _option(6, "After 429, 5xx, timeout, disconnect.", "--retries", int | None)
    backoff: float = _option(1.0, "Seconds before the first retry.", "--backoff", float | None)
    max_tokens_total: int | None = _option(
        None, "Budget in tokens.", "--max-tokens-total", int | None
    )
    price: tuple[float, float] | None = _option(None, "INPUT,OUTPUT per million tokens.", "--price")
    max_spend: float | None = _option(
        None, "Budget in money, with --price.", "--max-spend", float | None
    )
    api_key_env: str | None = _option(
        None, f"Variable with the key; default {KEY_VARIABLE}.", "--api-key-env"
    )
    api_key_cmd: str | None = _option(None, "Command that prints the key.", "--api-key-cmd")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", dict(self.parameters or {}))
        if not (isinstance(self.model, str) and self.model and self.model.isprintable()):
            raise UsageError("--model must be the model's name at the API; it is missing.")
        self._check_numbers()
        self._check_parameters()
        if self.base_url:
            self._check_url()
        if self.api_key_env and self.api_key_cmd:
            raise UsageError("--api-key-env and --api-key-cmd must not both be given. Drop one.")
        if self.max_spend is not None and self.price is None:
            raise UsageError("--max-spend must come with --price; it did not. Say what it costs.")
        if (self.max_spend is not None or self.max_tokens_total is not None) and not self.bound:
            raise UsageError(
                "a budget must come with a bound of one output; there is none. Add: "
                "--option max_tokens=512"
            )

    def _check_numbers(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise UsageError(f"--endpoint must be chat or completions; got {self.endpoint!r}.")
        for name, lowest, highest in (
            ("samples", 1, 100_000),
            ("concurrency", 1, 1024),
            ("retries", 0, 100),
            ("timeout", 0.001, 86_400),
            ("backoff", 0, 3600),
            ("logprobs", 0, 1000),
            ("max_tokens_total", 1, 10**15),
            ("max_spend", 0, 10**12),
        ):
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                said = {"samples": "n"}.get(name, name.replace("_", "-"))
                raise UsageError(f"--{said} must be {lowest} to {highest}; got {value}.")
        if self.price is not None and not all(0 <= one < float("inf") for one in self.price):
            raise UsageError(f"--price must be two numbers of at least 0; got {self.price}.")

    def _check_parameters(self) -> None:
        if taken := sorted(_OURS & set(self.parameters)):
            raise UsageError(
                f"--option must not set {', '.join(taken)}: the collection does. Use --model, "
                "--n, --logprobs and the file of prompts."
            )
        try:
            text = json.dumps(self.parameters, allow_nan=False, ensure_ascii=False)
            text.encode("utf-8")
        except (ValueError, TypeError) as error:
            raise UsageError(
                "--option must be text or JSON without NaN and infinity; it is not."
            ) from error
        seed = self.parameters.get("seed")
        if seed is not None and type(seed) is not int:
            raise UsageError(f"the option seed must be a whole number; got {seed!r:.40}.")

    def _check_url(self) -> None:
        """A URL without a secret: it stands in the ledger."""
        try:
            parts = urlsplit(self.base_url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname)
            bare = not (parts.username or parts.password or parts.query or parts.fragment)
        except ValueError:
            whole = bare = False
        if not (whole and bare and self.base_url.isprintable()):
            raise UsageError(
                "--base-url must be http(s)://HOST/PATH without user, password and query; it is "
                "not. A key comes from --api-key-env or --api-key-cmd."
            )

    @classmethod
    def read(cls, **given: Any) -> CollectSettings:
        """Settings from options: `parameters` NAME=VALUE, `price` INPUT,OUTPUT; None: the default.

        Raises UsageError.

        >>> CollectSettings.read(model="m", parameters=["temperature=0.7", "stop=END"]).parameters
        {'temperature': 0.7, 'stop': 'END'}
        """
        found = {name: value for name, value in given.items() if value is not None}
        if isinstance(price := found.get("price"), str):
            try:
                first, second = map(float, price.split(","))
            except ValueError:
                raise UsageError(
                    f"--price must be INPUT,OUTPUT per million; got {price!r}."
                ) from None
            found["price"] = (first, second)
        if isinstance(options := found.get("parameters"), Sequence):
            found["parameters"] = dict(map(_read_option, options))
        return cls(**found)

    @property
    def bound(self) -> int:
        """Tokens that one output has at most; 0 if nobody said."""
        names = ("max_completion_tokens", "max_tokens")
        given = [self.parameters[name] for name in names if name in self.parameters]
        return max([one for one in given if type(one) is int and one > 0], default=0)

    @property
    def is_loopback(self) -> bool:
        """Whether the API is on this machine."""
        return urlsplit(self.base_url).hostname in _LOOPBACK

    def facts(self) -> dict[str, Any]:
        """What stands in the header of a ledger, and what a collection cannot change."""
        return {
            "base_url": self.base_url,
            "endpoint": self.endpoint,
            "model": self.model,
            "parameters": dict(self.parameters),
            "samples": self.samples,
            "logprobs": self.logprobs,
        }

    def cost(self, read: int, written: int) -> float | None:
        """Money for so many input and output tokens; None without a price."""
        if self.price is None:
            return None
        return (read * self.price[0] + written * self.price[1]) / _MILLION


def _read_option(option: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is that, any other a string."""
    name, separator, text = option.partition("=")
    if not (name and separator):
        raise UsageError(f"--option must be NAME=VALUE; got {option!r:.80}. Example: top_p=0.95")
    try:
        value = json.loads(text, parse_constant=lambda _: text)
    except (ValueError, RecursionError):
        value = text
    return name, value
