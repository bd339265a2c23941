"""The published radioactivity tests, re-implemented from their definitions, on plain arrays.

Knows (context, token) pairs and the coins of these pairs; knows no keys, indexes or models. Every
test is given the same coins, those of our keyring, so that only the *test* differs. Each result
says what its authors would have reported, except that log10 p is computed in log space: the
originals clamp p at 1e-200 or underflow.

Sources. The code of all three was read (commits below; nothing of it is copied). Of the papers only
title, abstract and first page could be read offline: where a docstring names a section, it is the
one that the authors' own README names.

- Sander et al., arXiv 2402.14904, section 4; facebookresearch/radioactive-watermark 9daaab4.
- Pan et al., arXiv 2502.11598; THU-BPM/Watermark-Radioactivity-Attack cfeb123.
- TextSeal, arXiv 2605.12456 and 2502.17259; facebookresearch/textseal 23f921f and PyPI 0.0.5.

Do they hold for an innocent suspect, P(p <= a) <= a?

- `run_sander_closed`: yes, if no prompt is marked or `prompted` is given. phi must be a set of
  contexts of everything that was generated: a cut by frequency, or phi from responses that were
  selected afterwards, leaks the coins (statistics.md, section 5).
- `run_sander_open`: yes, on marked text that was not selected afterwards.
- `run_pan`: no. Repeated pairs are counted as new coins.
- `run_textseal`: not quite. mid-p is below the p-value, by a factor of up to 2; marked prompts are
  not left out; and with "v2" in reading mode a copied marked token counts.
- `unsafe_run_textseal_pair_filter`: no. It selects the pairs by their coins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from provenance.coins.contexts import first_occurrences, pack
from provenance.errors import UsageError
from provenance.marks.own import Green, Gumbel, Scheme, Tournament
from provenance.marks.own.scheme import WORDS
from tests.world.closed_forms import log10_binomial_tail, log10_gamma_tail

Words = NDArray[np.uint32]
Mask = NDArray[np.bool_]
Packed = NDArray[np.int64]

PAN_GROUP: Final = 10_000
"""Tokens of a group in the README of Pan et al. (`--group_token_nums`)."""
PAN_HISTORY: Final = 1024
"""`context_history_size` of the SynthID detector that Pan et al. use."""


@dataclass(frozen=True)
class PeerResult:
    """What a published test reports.

    Attributes
    ----------
    method : name of the test and its variant
    tokens : how many coins were summed
    z : (sum - mean) / sd under the null law of independent coins; 0 without tokens
    log10_p : log10 of the p-value that the authors report, not clamped
    """

    method: str
    tokens: int
    z: float
    log10_p: float


def run_sander_closed(
    contexts: Words,
    tokens: Words,
    words: Words,
    scheme: Scheme,
    *,
    prompted: Mask | None = None,
    served: Packed | None = None,
) -> PeerResult:
    """Closed model of Sander et al.: every distinct (context, token) of the outputs counts once.

    Parameters
    ----------
    contexts, tokens, words : uint32 [n, k], [n] and [n], of all outputs, in order
    scheme : what the words mean
    prompted : bool [n], the context occurs in the prompt of that very output: left out
    served : int64 [m], packed contexts of the suspected training data: the filter phi

    Notes
    -----
    Source: arXiv 2402.14904, section 4; `get_scores_by_t_chunked`, scoring method "v2", over all
    outputs as one text. phi holds *contexts* (k-grams), not (context, token) pairs, in the code
    beyond doubt. There it is built from prompts and answers of the marked set, can be cut to the
    most frequent ones (pass fewer). P(X >= x) is a binomial tail
    (green) or a Gamma(n, 1) tail (gumbel). Their code starts one token late, at position k + 1:
    not copied. It has no tournament; taken: Binomial(n m, 1/2), as in the later code of the same
    authors (TextSeal), without mid-p.
    """
    _check(contexts, tokens, words)
    keep = _kept(pack(contexts), prompted, served)
    keep[keep] = first_occurrences(_pair_names(pack(contexts[keep]), tokens[keep]))
    name = "sander-closed" if served is None else "sander-closed-filtered"
    return _exact(name, words[keep], scheme)


def run_sander_open(
    contexts: Words,
    tokens: Words,
    words: Words,
    documents: Packed,
    scheme: Scheme,
    *,
    served: Packed | None = None,
) -> PeerResult:
    """Open model of Sander et al. ("reading mode"): score what the suspect would say next.

    Parameters
    ----------
    contexts : uint32 [n, k], windows of the text that is read, in order of position
    tokens : uint32 [n], the suspect's most probable next token after everything up to there
    words : uint32 [n], coins of these pairs
    documents : int64 [n], which sequence a position belongs to (one forward pass each)
    served : int64 [m], the filter phi, as in the closed test

    Notes
    -----
    Source: arXiv 2402.14904, section 4; `main_reed_wm.py`, `topk` 1, `v1` 0. Only the first
    occurrence of a context in a sequence counts: at a later one an innocent model copies the
    marked token that it sees. Then every distinct (context, token) over all sequences counts once.
    Unclear: the released script applies no filter, the paper describes phi for both settings;
    here it is an option. Their sequences are 256 tokens cut from all texts joined; ours are
    `documents`. Read a *new* sample of marked text, or the suspected data themselves.
    """
    _check(contexts, tokens, words)
    packed = pack(contexts)
    keep = first_occurrences(_pair_names(packed, documents))
    keep &= _kept(packed, None, served)
    keep[keep] = first_occurrences(_pair_names(packed[keep], tokens[keep]))
    name = "sander-open" if served is None else "sander-open-filtered"
    return _exact(name, words[keep], scheme)


def run_pan(
    contexts: Words,
    tokens: Words,
    words: Words,
    scheme: Scheme,
    *,
    group: int | None = PAN_GROUP,
    history: int = PAN_HISTORY,
) -> PeerResult:
    """Pan et al.: no de-duplication, z of each group of tokens, the median p of the groups.

    Parameters
    ----------
    contexts, tokens, words : uint32 [n, k], [n] and [n], of all outputs, in order
    group : tokens of a group; None puts all into one (their tables go up to 1e6 tokens)
    history : tournament only; a context among so many before it in its group is left out; 0: none

    Notes
    -----
    Source: arXiv 2502.11598; `detect.py`. Outputs are joined, an incomplete last group is dropped,
    p = P(N > z) and the reported number is entry len // 2 of the sorted p-values. Green:
    z = (hits - gamma n) / sqrt(n gamma (1 - gamma)). Tournament: mean of the n m layer bits,
    z = (mean - 1/2) sqrt(4 m n), contexts among the last 1,024 masked (their mode
    "non-distortionary"; 0 is "distortionary"; which one gave the tables is unclear). They have no
    gumbel; taken: z = (sum - n) / sqrt(n), the moments of Exp(1). Their windows may span two
    outputs; ours do not. With too few tokens their code fails on an empty list; UsageError here.

    Not a p-value: pairs repeat, so the variance of the sum exceeds that of independent coins.
    """
    _check(contexts, tokens, words)
    size = words.shape[0] if group is None else group
    groups = words.shape[0] // size if size > 0 else 0
    if groups < 1:
        raise UsageError(
            f"Pan's test must have a group of at least {max(size, 1)} tokens; got {len(words)} "
            "tokens. Pass group=None or more outputs."
        )
    used = groups * size
    counted = np.ones(used, dtype=np.bool_)
    if isinstance(scheme, Tournament) and history > 0:
        names = np.unique(pack(contexts[:used]), return_inverse=True)[1]
        counted = _last_seen(np.arange(used) // size * (used + 1) + names) > history
    mean, variance = _moments(scheme)
    totals = np.where(counted, _scores(words[:used], scheme), 0.0).reshape(groups, size).sum(axis=1)
    counts = counted.reshape(groups, size).sum(axis=1)
    z = (totals - counts * mean) / np.sqrt(counts * variance)
    median = int(np.argsort(-z, kind="stable")[groups // 2])
    return PeerResult(
        "pan-grouped-z", int(counts[median]), float(z[median]), log10_normal_tail(float(z[median]))
    )


def run_textseal(
    contexts: Words,
    tokens: Words,
    words: Words,
    scheme: Scheme,
    *,
    dedup: Literal["v1", "v2"] = "v2",
) -> PeerResult:
    """TextSeal, outputs ("generate") or reading ("forward": tokens are the argmax): mid-p.

    Parameters
    ----------
    contexts, tokens, words : uint32 [n, k], [n] and [n], in order
    dedup : "v1" counts a context once (its first token), "v2" a (context, token) once. "v2" is the
        default of the package; its configurations for contamination tests say "v1"

    Notes
    -----
    Source: arXiv 2605.12456 and 2502.17259; `score_batch` of `core.py`, `get_pvalue` of
    `detector.py`. Green: P(X > x) + P(X = x)/2, X ~ Binomial(n, gamma). Gumbel: Gamma(n, 1), no
    mid-p. Tournament, unweighted: mid-p of Binomial(n m, 1/2). Duplicates are dropped over all
    lines. Unclear: `eval_wm.py` prints share and count per line and no p-value; taken: the
    detector's formula over all kept tokens. Not copied: windows that wrap from the end of a text
    to its start, the clamp at 1e-200, NaN without tokens; not applicable with one key: the
    Gamma(n / v) approximation for two keys and the smaller of two p-values (entropy-weighted or
    not, uncorrected).

    Not a p-value, strictly: see `log10_mid_p`. And "v2" in reading mode has no rule for a context
    that occurs twice in one text, where an innocent model copies a marked token.
    """
    _check(contexts, tokens, words)
    keep = first_occurrences(_textseal_names(contexts, tokens, dedup))
    return _mid(f"textseal-{dedup}", words[keep], scheme)


def unsafe_run_textseal_pair_filter(
    contexts: Words,
    tokens: Words,
    words: Words,
    scheme: Scheme,
    trained_contexts: Packed,
    trained_tokens: Words,
    *,
    dedup: Literal["v1", "v2"] = "v2",
) -> PeerResult:
    """TextSeal with `use_filter`: only the (context, token) pairs of the marked training data.

    Parameters
    ----------
    trained_contexts, trained_tokens : int64 [m] and uint32 [m], packed contexts and the tokens
        after them in the marked data

    Notes
    -----
    Source: `_apply_filter` of `core.py`, before de-duplication. INVALID: the coins decided which
    pairs the marked data contain, so the filter keeps the high coins, whoever wrote the outputs
    (p of an innocent model measured at 3.6e-38). Here to show it in the tables.
    """
    _check(contexts, tokens, words)
    names = _pair_names(
        np.concatenate([pack(contexts), trained_contexts]),
        np.concatenate([tokens, trained_tokens]),
    )
    keep: Mask = np.isin(names[: words.shape[0]], names[words.shape[0] :])
    keep[keep] = first_occurrences(_textseal_names(contexts[keep], tokens[keep], dedup))
    return _mid(f"textseal-{dedup}-pair-filter", words[keep], scheme)


def log10_tail(total: float, count: int, scheme: Scheme) -> float:
    """log10 P(S >= total) of `count` independent coins: binomial (green, tournament) or gamma.

    >>> round(log10_tail(8, 10, Green(0.5, 1.0)), 9)  # log10(56 / 1024)
    -1.26211193
    """
    if count == 0:
        return 0.0
    if isinstance(scheme, Gumbel):
        return float(log10_gamma_tail(total, count))
    trials, probability = _binomial(count, scheme)
    return float(log10_binomial_tail(total, trials, probability))


def log10_mid_p(total: float, count: int, scheme: Scheme) -> float:
    """log10 of P(S > total) + P(S = total) / 2, the mean of the tails at total and total + 1.

    Below P(S >= total), so an innocent suspect falls below a level a more often than a. The same as
    `log10_tail` for gumbel, which is continuous, and without tokens.

    >>> round(10 ** log10_mid_p(1, 1, Green(0.25, 1.0)), 6)  # happens with probability .25
    0.125
    """
    here = log10_tail(total, count, scheme)
    if count == 0 or isinstance(scheme, Gumbel):
        return here
    beyond = total + 1
    above = -math.inf
    if beyond <= _binomial(count, scheme)[0]:
        above = log10_tail(beyond, count, scheme)
    return here + math.log10((1 + 10 ** (above - here)) / 2)


def log10_normal_tail(z: float) -> float:
    """log10 P(N(0, 1) > z), for any z.

    >>> round(log10_normal_tail(4.0), 4)
    -4.4993
    """
    return float(log_ndtr(-z)) / math.log(10.0)


def _exact(method: str, words: Words, scheme: Scheme) -> PeerResult:
    total, count, z = _summary(words, scheme)
    return PeerResult(method, count, z, log10_tail(total, count, scheme))


def _mid(method: str, words: Words, scheme: Scheme) -> PeerResult:
    total, count, z = _summary(words, scheme)
    return PeerResult(method, count, z, log10_mid_p(total, count, scheme))


def _summary(words: Words, scheme: Scheme) -> tuple[float, int, float]:
    total, count = float(_scores(words, scheme).sum()), int(words.shape[0])
    mean, variance = _moments(scheme)
    z = (total - count * mean) / math.sqrt(count * variance) if count else 0.0
    return total, count, z


def _scores(words: Words, scheme: Scheme) -> NDArray[np.float64]:
    """1 for green, -ln(1 - u) for gumbel (not our lattice score), ones among the layer bits."""
    if isinstance(scheme, Gumbel):
        return np.asarray(-np.log1p(-(words.astype(np.float64) + 0.5) / WORDS))
    return scheme.score(words).astype(np.float64)


def _moments(scheme: Scheme) -> tuple[float, float]:
    """Mean and variance of one score."""
    if isinstance(scheme, Gumbel):
        return 1.0, 1.0
    trials, probability = _binomial(1, scheme)
    return trials * probability, trials * probability * (1 - probability)


def _binomial(count: int, scheme: Scheme) -> tuple[int, float]:
    """Trials and success probability of the sum of `count` scores."""
    if isinstance(scheme, Green):
        return count, scheme.threshold / WORDS
    if isinstance(scheme, Tournament):
        return count * scheme.layers, 0.5
    raise UsageError(
        f"scheme must be green, gumbel or tournament; got {scheme.name}. The peers define no other."
    )


def _kept(packed: Packed, prompted: Mask | None, served: Packed | None) -> Mask:
    keep = np.ones(packed.shape[0], dtype=np.bool_) if prompted is None else ~prompted
    return keep if served is None else keep & np.isin(packed, served)


def _pair_names(packed: Packed, second: NDArray[np.integer]) -> Packed:
    """One int64 per pair of a packed context and a token or document number."""
    distinct, names = np.unique(packed, return_inverse=True)
    pairs: Packed = second.astype(np.int64) * max(distinct.shape[0], 1) + names
    return pairs


def _textseal_names(contexts: Words, tokens: Words, dedup: str) -> Packed:
    if dedup not in ("v1", "v2"):
        raise UsageError(f"dedup must be v1 or v2; got {dedup}. Use v2.")
    return pack(contexts) if dedup == "v1" else _pair_names(pack(contexts), tokens)


def _last_seen(names: Packed) -> Packed:
    """How many positions ago each name stood last; the largest int64 if never."""
    order = np.argsort(names, kind="stable")
    ago = np.full(names.shape[0], np.iinfo(np.int64).max, dtype=np.int64)
    again = names[order[1:]] == names[order[:-1]]
    ago[order[1:][again]] = (order[1:] - order[:-1])[again]
    return ago


def _check(contexts: Words, tokens: Words, words: Words) -> None:
    if contexts.ndim != 2 or tokens.shape != words.shape or tokens.shape != contexts.shape[:1]:
        raise UsageError(
            f"contexts, tokens and words must be [n, k], [n] and [n]; got {contexts.shape}, "
            f"{tokens.shape} and {words.shape}. Pass one token and one word per context."
        )
