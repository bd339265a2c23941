"""What every adapter logs, through one object: the served-log record of a response.

    with ResponseSink(watermark, "served/") as sink:
        sink.write(labels, token_ids, finish="end", prompt_token_ids=prompt)

Which tokens of a response were drawn under a key follows from its ids, the labels and the keyring,
so an adapter need not say it: the sink replays the rules of `Watermark`. But the ids must be all
that was drawn: an end token or a stop string that is left out was a choice of the coins, and an
index that forgets it accuses innocent models. So `finish` says how the response ended; without it
the record does not claim to be whole, and no check against it can be evidence. Knows no serving
stack.
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
from provenance.served.records import Finish
from provenance.served.rotation import RotatingLog
from provenance.served.writer import LogWriter, ServedRecord


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
        drawn: bool | NDArray[np.bool_] = True,
        finish: Finish | None = None,
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
        token_ids : uint32 [n], all that was drawn: without prompt and padding, with the end token,
            whole stop strings, tool calls and hidden reasoning
        drawn : whether the watermark drew this response; pass False for greedy decoding, beams or
            whatever else went past it: that is logged as unmarked. An engine that knows passes
            bool [n]: which tokens a coin decided
        finish : how it ended: "end" (with an end token, the last id), "length", "stop" (at a stop
            string), "abort" (broken off); None if that is not known, then the log does not claim
            that the ids are whole
        response_id : unique in the log of the service; default: made here
        time : default: now, UTC
        text, prompt_token_ids, conversation_id : see `ServedRecord`

        Raises what `LogWriter.append` raises; when this returns, the record survives the process.
        """
        if isinstance(drawn, np.ndarray):
            bits = drawn
        elif drawn:
            bits = self.watermark.marked_positions(labels, token_ids)
        else:
            bits = np.zeros(token_ids.shape[0], dtype=np.bool_)
        marked = bool(bits.any())
        says_whole = isinstance(drawn, np.ndarray) or finish is not None
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
                drawn=bits if marked and says_whole else None,
                finish=finish,
            )
        )
        return marked


def _open_log(path: Path) -> LogWriter | RotatingLog:
    return LogWriter(path) if path.suffix in (".jsonl", ".parquet") else RotatingLog(path)
