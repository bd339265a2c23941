"""Which tokens quote the prompt, the slow way: strings, substrings and loops."""

import unicodedata

from provenance.suspect.letters import decode_escapes, decode_fully

SYLLABARIES = ("HIRAGANA", "KATAKANA", "ETHIOPIC", "YI SYLLABLE")


def slow_letters(text):
    """(letter or digit, place in the text), folded."""
    found = []
    for place, character in enumerate(text):
        folded = unicodedata.normalize("NFKD", character)
        folded = unicodedata.normalize("NFKD", folded.casefold())
        for sign, bare in zip("ıøłđħŧæœ", ["i", "o", "l", "d", "h", "t", "ae", "oe"], strict=True):
            folded = folded.replace(sign, bare)
        for sign in folded:
            category = unicodedata.category(sign)
            if category[0] not in "LN":
                continue
            name = unicodedata.name(sign, "")
            weight = 1
            if name.startswith("CJK UNIFIED IDEOGRAPH") or 0x17000 <= ord(sign) <= 0x18DFF:
                weight = 3  # Tangut: not every Python knows all of its names
            elif 0x3005 <= ord(sign) <= 0x303C or any(one in name for one in SYLLABARIES):
                weight = 2
            if category == "Nd":
                sign = str(unicodedata.digit(sign))
            found += [(sign, place)] * weight
    return found


def _forms(letters):
    """With digits, and without: each with the number of letters and digits before it."""
    numbered = [(*one, i) for i, one in enumerate(letters)]
    return [numbered, [one for one in numbered if unicodedata.category(one[0])[0] != "N"]]


def _windows(letters, units):
    """(string, first, last) of so many letters in a row, with six digits between them at most."""
    for start in range(len(letters) - units + 1):
        own = letters[start : start + units]
        if own[-1][-1] - own[0][-1] - (units - 1) <= 6:
            yield "".join(one[0] for one in own), start, start + units - 1


def _known(texts, units):
    return {
        string
        for text in texts
        for form in (text, decode_escapes(text).text, decode_fully(text).text)
        for letters in _forms(slow_letters(form))
        for string, _, _ in _windows(letters, units)
    }


def _matches(letters, known, units):
    """First and last letter of every window that stands in the prompt."""
    for string, first, last in _windows(letters, units):
        if string in known:
            yield first, last


def slow_both(text, offsets, shown, width, tail=64, units=12):
    """The rule of outputs: bool per token. `offsets`: (begin, end) of each token."""
    if not shown:
        return [False] * len(offsets)
    known = _known(shown, units)
    before = shown[-1][-tail:]
    whole, shift = before + text, len(before)
    decoded = decode_fully(whole)
    covered = [False] * len(text)
    plain = [(sign, place, place + 1) for sign, place in slow_letters(whole)]
    undone = [
        (sign, int(decoded.begins[place]), int(decoded.ends[place]))
        for sign, place in slow_letters(decoded.text)
    ]
    for letters in (*_forms(plain), *_forms(undone)):
        for first, last in _matches(letters, known, units):
            for place in range(letters[first][1], letters[last][2]):
                if place >= shift:
                    covered[place - shift] = True
    is_letter = {place - shift for _, place, _ in plain}
    found = list(covered)
    for start, step in ((0, 1), (len(text) - 1, -1)):  # signs behind, then before, a quotation
        inside, place = False, start
        while 0 <= place < len(text):
            inside = covered[place] if place in is_letter else inside or covered[place]
            if inside:
                found[place] = True
            place += step
    touched = []
    for begin, end in offsets:
        begin, end = (max(begin - 1, 0), end + 1) if end <= begin else (begin, end)
        touched.append(any(found[begin:end]))
    return [any(touched[max(i - width, 0) : i + 1]) for i in range(len(offsets))]


def slow_before(pieces, shown, width, units=8):
    """The rule of documents: bool per token. `pieces`: the bytes of each token."""
    if not shown:
        return [False] * len(pieces)
    known = _known(shown, units)
    ended, so_far = [], b""
    before = [[], []]
    for piece in pieces:
        so_far += piece
        after = _forms(slow_letters(so_far.decode("utf-8", "ignore")))
        hit = False
        for own, letters in zip(before, after, strict=True):
            ends = range(len(own), len(letters)) or [len(letters) - 1]
            hit |= any(last in ends for _, last in _matches(letters, known, units))
        before = after
        ended.append(hit)
    return [any(ended[max(i - width, 0) : i]) for i in range(len(pieces))]
