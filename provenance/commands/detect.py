"""`provenance detect`: is this very text marked, and where?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from provenance.check.verdict import EXIT_CODES, Conclusion
from provenance.commands import marks
from provenance.commands.console import print_json, print_table, results
from provenance.commands.marks import MarkChoice
from provenance.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from provenance.marks.detection import Detection


@dataclass(frozen=True)
class _Text:
    """One text: where it stood, its token ids and the characters of each token."""

    origin: str
    ids: NDArray[np.uint32]
    spans: Sequence[tuple[int, int]]


def detect(
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...", help="Files: .jsonl[.gz|.zst] or plain text; - is stdin."
        ),
    ],
    keys: marks.Keys = None,
    scheme: marks.SchemeName = None,
    config: marks.SchemeConfig = None,
    key_file: marks.SchemeKeyFile = None,
    key_command: marks.SchemeKeyCommand = None,
    tokenizer: marks.TokenizerFile = None,
    vocabulary_size: marks.VocabularySize = None,
    alpha: Annotated[float, typer.Option(help="Level over all keys, windows and texts.")] = 1e-4,
    pool: Annotated[
        bool, typer.Option("--pool", help="One test of all texts together, each coin once.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Test texts for the mark itself.

    Exit 1: at least one is marked; 0: none is; 3: none is, but one or more could not be tested.
    """
    from provenance.marks.detection import detect_mark, detect_pooled

    if not 0 < alpha <= 0.05:
        raise UsageError(f"alpha must be in (0, 0.05]; got {alpha}. Use 1e-4.")
    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    mark = choice.open()
    loaded = choice.load_tokenizer(mark)
    read, blank = _read_all(texts, loaded)
    # decided by the texts, before any coin: blank ones are no test and cost no level
    level = alpha if pool else alpha / len(read)
    found = [detect_mark(text.ids, mark, level) for text in read]
    pooled = detect_pooled([text.ids for text in read], mark, alpha) if pool else None
    decided = found if pooled is None else [pooled]
    if as_json:
        named = zip(read, found, strict=True)
        entries = [{"origin": text.origin, **_to_json(result, pool)} for text, result in named]
        together = {} if pooled is None else {"pooled": pooled.to_json()}
        conclusion = _conclude(decided)
        print_json({"conclusion": conclusion, "texts": entries, "blank": blank, **together})
    else:
        _print(read, found, pooled, alpha, blank)
    raise typer.Exit(EXIT_CODES[_conclude(decided)])


def _conclude(found: Sequence[Detection]) -> Conclusion:
    """Over all texts: nothing is said of one without a coin, nor if all are too short."""
    if any(result.marked for result in found):
        return "evidence"
    untested = not all(result.tested for result in found)
    too_short = all(result.too_short for result in found)
    return "inconclusive" if untested or too_short else "no evidence"


def _read_all(names: Sequence[str], tokenizer: Tokenizer) -> tuple[list[_Text], int]:
    """Every text that is not blank, as token ids, and the number of blank ones."""
    import numpy as np

    read, blank = [], 0
    for name in names:
        for origin, text in _read_texts(name):
            if not text.strip():
                blank += 1
                continue
            encoding = tokenizer.encode(text, add_special_tokens=False)
            read.append(_Text(origin, np.asarray(encoding.ids, dtype=np.uint32), encoding.offsets))
    if not read:
        raise DataError(
            f"{', '.join(names)}: must hold at least one text that is not blank; got "
            f"{blank or 'none'}{' blank' if blank else ''}. Name the files that hold the text."
        )
    return read, blank


def _to_json(result: Detection, pool: bool) -> dict[str, Any]:
    """A text's entry; where texts are pooled, its counts without a test of its own."""
    if not pool:
        return result.to_json()
    best = result.strongest
    counts = {
        "coins": best.coins if best else 0,
        "score": best.score if best else 0,
        "original_score": best.original_score if best else None,
    }
    return {"tokens": result.tokens, **counts}


def _print(
    read: Sequence[_Text],
    found: Sequence[Detection],
    pooled: Detection | None,
    alpha: float,
    blank: int,
) -> None:
    rows = []
    for text, result in zip(read, found, strict=True):
        outcome = ["", "counted", "-"] if pooled is not None else _outcome(text, result)
        rows.append([text.origin, str(result.tokens), *_counts(result), *outcome])
    if pooled is not None:
        row = [f"all {len(read)} together", str(pooled.tokens), *_counts(pooled)]
        rows.append([*row, *_outcome(None, pooled)])
    columns = ["text", "tokens", "n", "S", "log10 p", "result", "strongest"]
    print_table(columns, rows)
    say = results.print
    keyed = len(found[0].keys)
    tried = f"{keyed} key{'' if keyed == 1 else 's'}"
    looks = "" if pooled is not None else ", all windows"
    of = "one test" if pooled is not None else f"{len(read)} text{'' if len(read) == 1 else 's'}"
    say(f"p corrected for {tried}{looks}; alpha {alpha:g} over {of}.", highlight=False)
    say("n: scored units, each once; S: sum of their scores, for the strongest key.")
    if pooled is None and (untested := sum(not result.tested for result in found)):
        said = f"{untested} of {len(found)} texts have no coin to score: not tested."
        say(said, highlight=False)
    if blank:
        say(f"{blank} blank text{'' if blank == 1 else 's'} left out.", highlight=False)
    if caveat := found[0].caveat:
        say(f"Caveat: {caveat}.", highlight=False, markup=False)


def _counts(result: Detection) -> list[str]:
    """n and S of the strongest key; S as the original adds it up where that is not ours."""
    best = result.strongest
    if best is None:
        return ["0", "0"]
    natural = best.original_score
    return [str(best.coins), str(best.score) if natural is None else f"{natural:.3f}"]


def _outcome(text: _Text | None, result: Detection) -> list[str]:
    """log10 p, what it says, and where the strongest span lies."""
    best, where = result.strongest, "-"
    if result.marked and best is not None:
        where = best.name
        if text is not None:
            spans = text.spans[best.start : best.end]
            where = f"{best.name}, characters {spans[0][0]}..{spans[-1][1]}"
        said = "MARKED"
    else:
        said = "too short to say" if result.too_short else "no mark found"
    return [f"{result.log10_p:.2f}", said, where]


def _read_texts(name: str) -> Iterator[tuple[str, str]]:
    from provenance.storage.files import read_bytes
    from provenance.storage.lines import LineReader, read_json_lines

    path = Path(name)
    if name != "-" and any(suffix == ".jsonl" for suffix in path.suffixes):
        for origin, record in read_json_lines(LineReader(path)):
            text = record.get("text", record.get("output")) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise DataError(
                    f"{origin}: must have text or output (a string); it has none. "
                    "Write one object a line, with the text in one of them."
                )
            yield origin, text
        return
    content = sys.stdin.buffer.read() if name == "-" else read_bytes(path)
    try:
        yield name, content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: must be UTF-8 text; it is not. Convert it first.") from error
