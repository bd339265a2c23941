"""Recompute the verdict of a bundle without the software that made it.

python3 verify_without_us.py BUNDLE_DIR (needs numpy and openssl); see docs/verify-without-us.md.
Exit 0: every step was done, and agrees. 1: a step disagrees. 3: none disagrees, but some were not
possible, since a key, the pairs or a signature is not in the bundle. 2: called wrongly.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from math import comb
from pathlib import Path

import numpy as np

TOLERANCE = 1e-6  # of log10 p: the verdict states an upper bound, which exceeds p by less
missing = []  # steps that were not possible


def demand(holds, claim):
    if not holds:
        sys.exit(f"NOT REPRODUCED: {claim}")
    print(f"ok  {claim}")


def lack(claim):
    missing.append(claim)
    print(f"--  not possible: {claim}")


def coins(key, contexts, tokens):
    """Word number t of the ChaCha20 keystream (RFC 8439) of each (context, t): uint32 [n]."""
    state = np.full((16, len(tokens)), 0xFFFFFFFF, dtype=np.uint32)
    state[:12] = np.frombuffer(b"expand 32-byte k" + key, dtype="<u4")[:, None]
    state[12] = tokens >> 4
    state[16 - contexts.shape[1] :] = contexts.T
    x = state.copy()
    for i in range(80):  # quarter rounds, on columns and diagonals by turns
        a, diagonal = i % 4, (i // 4) % 2
        b, c, d = (4 * k + (a + k * diagonal) % 4 for k in (1, 2, 3))
        for left, right, turned, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[left] += x[right]
            x[turned] ^= x[left]
            x[turned] = (x[turned] << np.uint32(by)) | (x[turned] >> np.uint32(32 - by))
    return (x + state)[tokens & 15, np.arange(len(tokens))]


def openssl_coin(key, context, token):
    """The same coin from the openssl command."""
    nonce = b"\xff" * (12 - 4 * len(context)) + context.astype("<u4").tobytes()
    iv = ((token >> 4).to_bytes(4, "little") + nonce).hex()
    command = ["openssl", "enc", "-chacha20", "-K", key.hex(), "-iv", iv]
    return np.frombuffer(subprocess.check_output(command, input=bytes(64)), "<u4")[token & 15]


def score(scheme, words):
    """Score of each word, and how many of the 2**32 words have score 0, 1, 2, ..."""
    name, options = scheme["name"], scheme["parameters"]
    if name == "gumbel":
        edges = np.ceil(2.0**32 * (1 - np.exp(-np.arange(1, 89) / 4))).astype(np.int64)
        edges = edges[edges < 2**32]
        return np.searchsorted(edges, words, "right"), np.diff([0, *edges, 2**32])
    if name == "green":
        edge = round(options["gamma"] * 2**32)
        return (words < edge).astype(np.int64), np.array([2**32 - edge, edge])
    layers = options["layers"]
    law = np.array([comb(layers, j) << (32 - layers) for j in range(layers + 1)])
    return np.bitwise_count(words >> np.uint32(32 - layers)).astype(np.int64), law


def log10_tail(weights, law, statistic):
    """log10 P(sum of weight * score >= statistic): exponential tilting, then one FFT a weight."""
    # tilted by exp(t s) the sum has its mean at the statistic: the tail loses no digits; its law
    # is computed modulo a length, and what wraps around counts as tail: p is never too small
    values, counts = np.unique(weights, return_counts=True)
    grid, p = values[:, None] * np.flatnonzero(law), law[law > 0] / law.sum()

    def tilt(t):
        top = (t * grid).max(axis=1)[:, None]
        masses = p * np.exp(t * grid - top)
        total = masses.sum(axis=1)[:, None]
        mean, square = (masses / total * grid**k @ np.ones(len(p)) for k in (1, 2))
        cumulant = counts @ (top + np.log(total))[:, 0]
        return masses / total, counts @ mean, counts @ (square - mean**2), cumulant

    low, high = 0.0, 8.0
    for _ in range(100):
        t = (low + high) / 2
        low, high = (t, high) if tilt(t)[1] < statistic else (low, t)
    t = max(high, 1 / np.sqrt(tilt(0.0)[2]))
    masses, _, variance, cumulant = tilt(t)
    length = 1 << int(30 / t + 20 * np.sqrt(variance) + abs(grid).max()).bit_length()
    spectrum = np.ones(length // 2 + 1, dtype=complex)
    for row, mass, count in zip(grid, masses, counts, strict=True):
        spectrum *= np.fft.rfft(np.bincount(row % length, mass, length)) ** count
    beyond = np.roll(np.fft.irfft(spectrum, length), -(statistic % length))
    inside = np.maximum(beyond, 0) @ np.exp(-t * np.arange(length))
    return min(0.0, (cumulant - t * statistic + np.log(inside)) / np.log(10))


def recompute(folder, file, name, key, committed, keyring):
    """Weights, law and statistic of one key, from its secret and the pairs."""
    opened = hashlib.sha256(bytes.fromhex(committed["salt"]) + key).hexdigest()
    demand(opened == committed["sha256"], f"{name}: the key opens its commitment")
    path, k = folder / "pairs" / f"{file}.csv.gz", keyring["context_width"]
    rows = np.loadtxt(path, dtype=np.int64, delimiter=",", skiprows=1, ndmin=2)
    rows = rows.reshape(-1, k + 3)
    demand(len(np.unique(rows[:, : k + 1], axis=0)) == len(rows), f"{name}: pairs stand once")
    contexts, tokens = rows[:, :k].astype(np.uint32), rows[:, k].astype(np.uint32)
    words = coins(key, contexts, tokens)
    for i in range(min(1, len(rows))):
        agree = words[i] == openssl_coin(key, contexts[i], int(tokens[i]))
        demand(agree, f"{name}: openssl agrees")
    scores, law = score(keyring["scheme"], words)
    demand((scores == rows[:, -1]).all(), f"{name}: the scores are those of the coins")
    return rows[:, -2], law, int(rows[:, -2] @ scores)


def check_key(folder, file, row, disclosed, keyring, has_pairs):
    """log10 p of one key: from its secret and the pairs, or else from its class table as stated."""
    name = " ".join(row[one] for one in ("group", "side", "slot", "value") if row.get(one))
    classes = row["table"]["classes"]
    counts, weights = (np.array([c[n] for c in classes], dtype=int) for n in ("count", "weight"))
    weights, total = np.repeat(weights, counts), sum(c["weight"] * c["total"] for c in classes)
    demand(len(row["table"]["laws"]) <= 1, f"{name}: its class table has one law")
    law = np.array(row["table"]["laws"][0]["masses"], dtype=float) if classes else np.ones(1)
    key = disclosed.get((row["slot"], row["value"]))
    if keyring["scheme"]["name"] not in ("gumbel", "green", "tournament"):
        lack(f"{name}: its coins and their law, of another library's scheme; taken as stated")
    elif not key or not has_pairs:
        what = "its key is not disclosed" if has_pairs else "pairs are not in the bundle"
        lack(f"{name}: its coins, since {what}; its class table is taken as stated")
        known = score(keyring["scheme"], np.zeros(0, dtype=np.uint32))[1]
        same = not classes or law.tolist() == known.tolist()
        demand(same, f"{name}: the law of a score is that of the scheme")
    else:
        slots = {slot["name"]: slot["values"] for slot in keyring["slots"]}
        committed = next(one for one in slots[row["slot"]] if one["value"] == row["value"])
        weights, law, found = recompute(folder, file, name, key, committed, keyring)
        demand(found == total, f"{name}: the pairs add up to the class table")
    p = log10_tail(weights, law, total) if weights.any() else 0.0
    demand(abs(p - row["log10_p"]) < TOLERANCE, f"{name}: log10 p = {p:.6f}")
    return p


def allowed(verdict, p, passed):
    """What may be concluded; twins, reservations and lack of power are taken as stated."""
    twins = verdict["twins"] if verdict["schema_version"] > 1 else None
    rejects = p <= np.log10(verdict["alpha"]) or (twins and twins["rejected"])
    found = ["evidence"] if rejects else ["no evidence", "inconclusive"]
    held = {one["against"] for one in verdict.get("reservations", ())} & {found[0], "both"}
    return found if passed and not held else ["inconclusive", "invalid"]


def main(folder):
    read = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    manifest = json.loads(read["manifest.json"])
    for file in manifest["files"]:
        path = folder / file["name"]
        digest = hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
        demand(digest == file["sha256"], f"{file['name']} is there, unchanged")
    verdict, keyring = json.loads(read["verdict.json"]), json.loads(read["keyring.json"])
    command = "openssl pkeyutl -verify -rawin -pubin -inkey manifest.pub.pem"
    command = f"{command} -in manifest.json -sigfile manifest.sig".split()
    if (folder / "manifest.sig").exists() or (folder / "manifest.pub.pem").exists():
        signed = subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
        demand(signed, "manifest.pub.pem signed manifest.json")
    else:
        lack("who vouches for these files, since nobody signed them")
    planned = hashlib.sha256(read.get("plan.json", b"")).hexdigest()
    committed = verdict["plan"] is None or planned == verdict["plan"]["sha256"]
    demand(committed, f"the plan is the committed one, {planned}, or there is none")
    shown = [json.loads(path.read_text()) for path in (folder / "disclosed").glob("*.json")]
    disclosed = {(one["slot"], one["value"]): bytes.fromhex(one.get("key", "")) for one in shown}
    tested = {f"{i:03d}": row for i, row in enumerate(verdict["hypotheses"])}
    for i, row in enumerate(verdict.get("groups", ())):  # on contexts that one side alone saw
        tested[f"group-{i:03d}"] = {**row, "slot": "global", "value": ""}
    given, stated = (disclosed, keyring, manifest["pairs"]), list(tested.values())
    p = np.array([check_key(folder, file, row, *given) for file, row in tested.items()])
    shares = np.array([row["family_weight"] for row in stated])
    demand(abs(shares.sum() - 1) < 1e-9, "the keys share out alpha and no more")
    order = np.argsort(p - np.log10(shares))  # weighted Holm
    left = np.cumsum(shares[order][::-1])[::-1]
    steps = np.maximum.accumulate(p[order] + np.log10(left / shares[order]))
    gap = np.minimum(steps, 0) - [stated[i]["log10_adjusted"] for i in order]
    demand(max(abs(gap)) < TOLERANCE, f"weighted Holm: adjusted log10 p = {steps[0]:.6f}")
    passed = [one["log10_p"] is None or one["log10_p"] >= -3 for one in verdict["controls"]]
    demand(passed == [one["passed"] for one in verdict["controls"]], "controls pass as stated")
    found = verdict["conclusion"]
    demand(found in allowed(verdict, steps[0], all(passed)), f"conclusion: {found}")
    if missing:
        print(f"NOT POSSIBLE: {len(missing)} of the steps above. What could be recomputed agrees.")
        sys.exit(3)
    print("REPRODUCED" + ("" if verdict["plan"] else ": an exploratory check"))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "manifest.json").is_file():
        print("usage: verify_without_us.py BUNDLE_DIR, a folder of `check -o`", file=sys.stderr)
        sys.exit(2)
    if not shutil.which("openssl"):
        print("the openssl command must be there (3.0 or later)", file=sys.stderr)
        sys.exit(2)
    try:
        main(Path(sys.argv[1]))
    except (OSError, LookupError, TypeError, ValueError, OverflowError) as error:
        demand(False, f"the bundle can be read: {error!r}")
