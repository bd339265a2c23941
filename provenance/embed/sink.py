"""What every adapter logs, through one object: the served-log record of a response.

    with ResponseSink(watermark, "served/") as sink:
        sink.write(labels, token_ids, prompt_token_ids=prompt)

Whether a response is marked follows from its ids, the labels and the keyring, so no adapter has to
say it: the sink replays the rules of `Watermark`. Knows no serving stack.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from provenance.embed.watermark import Labels, Watermark
from provenance.served.log import LogWriter, RotatingLog, ServedRecord

__all__ = ["ResponseSink"]


class ResponseSink:
    """Writes the responses of one service to its served log; use it as a context manager.

    Parameters
    ----------
    watermark : the one that drew the responses
    log : where to; a path that ends in .jsonl or .parquet becomes one file (`LogWriter`), any other
        a folder of rotating files (`RotatingLog`), or a log that the caller opened

    Raises what those raise. Safe to share among threads if the log is.
    """

    def __init__(self, watermark: Watermark, log: Path | str | LogWriter | RotatingLog) -> None:
        self.watermark = watermark
        self.log = _open_log(Path(log)) if isinstance(log, str | Path) else log
        self._run = secrets.token_hex(6)
        self._numbers = count()

    def __enter__(self) -> ResponseSink:
        self.log.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.log.__exit__(kind, error, trace)

    def write(
        self,
        labels: Labels,
        token_ids: NDArray[np.uint32],
        *,
        drawn: bool = True,
        response_id: str | None = None,
        time: str | None = None,
        text: str | None = None,
        prompt_token_ids: NDArray[np.uint32] | None = None,
        conversation_id: str | None = None,
    ) -> bool:
        """Log one response; returns whether it is marked.

        Parameters
        ----------
        labels : attribute values of the request, as the watermark was given them
        token_ids : uint32 [n], the response without prompt, padding and end token
        drawn : whether the watermark drew this response; pass False for greedy decoding, beams or
            whatever else went past it: that is logged as unmarked
        response_id : unique in the log of the service; default: made here
        time : default: now, UTC
        text, prompt_token_ids, conversation_id : see `ServedRecord`

        Raises what `LogWriter.append` raises; when this returns, the record survives the process.
        """
        marked = drawn and bool(self.watermark.marked_positions(labels, token_ids).any())
        public = self.watermark.keyring.public
        self.log.append(
            ServedRecord(
                response_id=response_id or f"{self._run}-{next(self._numbers)}",
                marked=marked,
                labels=labels,
                token_ids=token_ids,
                text=text,
                time=time or datetime.now(UTC).isoformat(timespec="seconds"),
                prompt_token_ids=prompt_token_ids,
                conversation_id=conversation_id,
                keyring_id=public.id,
                scheme=public.scheme.name,
            )
        )
        return marked


def _open_log(path: Path) -> LogWriter | RotatingLog:
    return LogWriter(path) if path.suffix in (".jsonl", ".parquet") else RotatingLog(path)
