"""What every adapter logs, through one object: the served-log record of a response.

    with ResponseSink(watermark, "served/") as sink:
        sink.write(response)                      # a ServedResponse, from any adapter
        sink.write(labels, token_ids, finish="end", prompt_token_ids=prompt)

Which tokens of a response were drawn under a key follows from its ids, its prompt, the labels and
the keyring, so an adapter need not say it: a sink that has the watermark replays the rules (and
refuses a record without the prompt, if the keyring reads it). A host without keys
makes its sink of the public folder, and writes records that say it. But the ids must be all that
was drawn: an end token or a stop string that is left out was a choice of the coins, and an index
that forgets it accuses innocent models. So `finish` says how the response ended; without it the
record does not claim to be whole, and no check against it can be evidence. Knows no serving stack.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import MAXIMUM_VOCABULARY, check_token_ids
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.following import FollowedKeys
from provenance.keys.keyring import Keyring
from provenance.keys.marking import MarkingKeys
from provenance.keys.worker import read_public
from provenance.served.records import Labels, ServedResponse
from provenance.served.rotation import RotatingLog
from provenance.served.writer import Log, LogWriter


class ResponseSink:
    """Writes the responses of one service to its served log; use it as a context manager.

    Parameters
    ----------
    watermark : the one that drew the responses; where they say themselves which tokens were drawn,
        its public keyring is enough: the object, its folder (keyring.json), or a worker's file, of
        which no key is kept
    log : where to; a path that ends in .jsonl or .parquet becomes one file (`LogWriter`), any other
        a folder of rotating files (`RotatingLog`), or one of the logs of `provenance.served` itself

    Values that are added to the keyring later are found where the watermark's keys were read.

    Raises what those and `provenance.keys.worker.read_public` raise; a worker's file may be
    expired. Safe to share among threads if the log is.
    """

    def __init__(self, watermark: Watermark | Keyring | Path | str, log: Path | str | Log) -> None:
        self.watermark = watermark if isinstance(watermark, Watermark) else None
        self._followed = _follow(self.watermark)
        if isinstance(watermark, Watermark):
            self.public = watermark.keyring.public
        elif isinstance(watermark, Keyring):
            self.public = watermark
        else:
            self.public = read_public(watermark, may_be_expired=True).public
        if isinstance(log, str | Path):
            one_file = Path(log).suffix in (".jsonl", ".parquet")
            log = LogWriter(log) if one_file else RotatingLog(log)
        self.log = log

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

    def check_keyring(self, public: Keyring) -> None:
        """Raise ConfigurationMismatchError unless the sink is of this keyring."""
        if self.public.id != public.id:
            raise ConfigurationMismatchError(
                f"the sink must be of keyring {public.id}; it is of {self.public.id}. Make it with "
                "this object's watermark."
            )

    def write(
        self,
        response: ServedResponse | Labels | None = None,
        token_ids: NDArray[np.uint32] | None = None,
        *,
        drawn: bool | NDArray[np.bool_] | None = None,
        **fields: Any,
    ) -> bool:
        """Log one response; returns whether it is marked.

        Parameters
        ----------
        response : what an adapter returned; or the labels of the request, as the watermark was
            given them, and then `token_ids` too
        token_ids : uint32 [n], all that was drawn; see `ServedResponse`
        drawn : False for greedy decoding, beams or whatever else went past the watermark: that is
            logged as unmarked. An engine that knows passes bool [n]: which tokens a coin decided
        fields : further fields of `ServedResponse` by name, in place of the response's own: `text`,
            `conversation_id`, or `labels` with more names for groups (account, replica)

        Raises what `LogWriter.append` raises; when this returns, the record survives the process.
        """
        if not isinstance(response, ServedResponse):
            response = ServedResponse(labels=response or {}, token_ids=token_ids)
        if isinstance(drawn, np.ndarray):
            fields["drawn"] = drawn
        elif drawn is not None:
            fields["marked"] = None if drawn else False
        record = self._complete(replace(response, **fields))
        self.log.append(record)
        return bool(record.marked)

    def _know(self, labels: Labels) -> None:
        """See to it that the watermark has the keys of these labels: a value may have been added
        since it was made. Raises ConfigurationMismatchError if the keyring has none.
        """
        assert self.watermark is not None
        try:
            self.watermark.check_labels(labels)
        except ConfigurationMismatchError:
            if self._followed is None or not self._followed.reread():
                raise
            self.watermark = Watermark(self._followed.known)
            self.public = self.watermark.keyring.public
            self.watermark.check_labels(labels)

    def _complete(self, response: ServedResponse) -> ServedResponse:
        """What the log keeps of a response: which tokens a key decided, a name, a time."""
        if response.token_ids is None:
            raise UsageError("a response must have token_ids, all that was drawn; got none.")
        ids = check_token_ids(response.token_ids, MAXIMUM_VOCABULARY, "token_ids")
        bits = response.drawn
        if bits is None and response.marked is False:
            bits = np.zeros(ids.shape[0], dtype=np.bool_)
        elif bits is None:
            if self.watermark is None:
                raise UsageError(
                    "a response must say which tokens were drawn, for this sink has no keys; it "
                    "does not. Pass drawn, or make the sink with the watermark that drew it."
                )
            self._know(response.labels)
            bits = self.watermark.marked_positions(response.labels, ids, response.prompt_token_ids)
        marked = bool(bits.any())
        says_whole = response.drawn is not None or response.finish is not None
        return replace(
            response,
            response_id=response.response_id or str(uuid.uuid4()),
            marked=marked,
            time=response.time or datetime.now(UTC).isoformat(timespec="seconds"),
            keyring_id=self.public.id,
            scheme=self.public.scheme.name,
            drawn=bits if marked and says_whole else None,
        )


def _follow(watermark: Watermark | None) -> FollowedKeys[MarkingKeys] | None:
    """The keys of a watermark, to be read again where they were read from."""
    home = None if watermark is None else watermark.keyring.home
    if watermark is None or home is None:
        return None
    return FollowedKeys(watermark.keyring, home)
