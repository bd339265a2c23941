"""`provenance detect`: is this very text marked, and where?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provenance.commands import marks
from provenance.commands.console import print_json, print_table, results
from provenance.commands.marks import MarkChoice
from provenance.errors import DataError, UsageError
from provenance.verdict import EXIT_CODES, Conclusion

if TYPE_CHECKING:
    from provenance.detect import Detection

__all__ = ["detect"]


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
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Test texts for the mark itself.

    Exit 1: at least one is marked; 0: none is; 3: none is, but one or more could not be tested.
    """
    import numpy as np

    from provenance.detect import detect_mark

    if not 0 < alpha <= 0.05:
        raise UsageError(f"alpha must be in (0, 0.05]; got {alpha}. Use 1e-4.")
    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    mark = choice.open()
    loaded = choice.load_tokenizer(mark)
    named = [pair for name in texts for pair in _read_texts(name)]
    if not named:
        raise DataError(f"{', '.join(texts)}: must hold at least one text; got none.")
    found = []
    for origin, text in named:
        encoding = loaded.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.uint32)
        found.append((origin, encoding, detect_mark(ids, mark, alpha / len(named))))
    if as_json:
        print_json(
            {
                "conclusion": _conclude([result for _, _, result in found]),
                "texts": [{"origin": origin, **result.to_json()} for origin, _, result in found],
            }
        )
    else:
        rows = []
        for origin, encoding, result in found:
            best = min(result.keys, key=lambda key: key.log10_adjusted, default=None)
            where = "-"
            if result.marked and best:
                spans = encoding.offsets[best.start : best.end]
                where = f"{best.name}, characters {spans[0][0]}..{spans[-1][1]}"
            row = [origin, str(result.tokens), f"{result.log10_p:.2f}"]
            rows.append([*row, _say(result), where])
        print_table(["text", "tokens", "log10 p", "result", "strongest"], rows)
        keyed = len(found[0][2].keys)
        results.print(f"p corrected for {keyed} keys and all windows; alpha {alpha:g}.")
        if caveat := found[0][2].caveat:
            results.print(f"Caveat: {caveat}.", highlight=False, markup=False)
        if untested := sum(not result.tested for _, _, result in found):
            results.print(f"{untested} of {len(found)} texts have no coin to score: not tested.")
    raise typer.Exit(EXIT_CODES[_conclude([result for _, _, result in found])])


def _conclude(found: Sequence[Detection]) -> Conclusion:
    """Over all texts; nothing is said of a text in which no coin could be scored."""
    if any(result.marked for result in found):
        return "evidence"
    return "no evidence" if all(result.tested for result in found) else "inconclusive"


def _say(result: Detection) -> str:
    if not result.tested:
        return "not tested"
    return "MARKED" if result.marked else "no mark found"


def _read_texts(name: str) -> Iterator[tuple[str, str]]:
    from provenance.files import read_bytes
    from provenance.lines import LineReader, read_json_lines

    path = Path(name)
    if name != "-" and any(suffix == ".jsonl" for suffix in path.suffixes):
        for origin, record in read_json_lines(LineReader(path)):
            text = record.get("text", record.get("output")) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise DataError(f"{origin}: must have text or output (a string); it has none.")
            yield origin, text
        return
    content = sys.stdin.buffer.read() if name == "-" else read_bytes(path)
    try:
        yield name, content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: must be UTF-8 text; it is not. Convert it first.") from error
