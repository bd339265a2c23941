"""Vectors by the definition, no original run: vllm-sbw.json and sglang-gumbel.json.

SBW is a proposal to vLLM and in no release. SGLang publishes known answers of its hash, which the
tests hold beside these. Both are written here once more in Python integers.
"""

from benchmarks.vectors import token_ids, windows, write

MASK = 0xFFFFFFFF
SBW = [
    (1234605616436508552, "selfhash", 4, 0.5, 151936),
    (42, "lefthash", 1, 0.25, 32000),
    ((1 << 62) + 12345, "lefthash", 3, 0.5, 1000),
    (7, "selfhash", 1, 0.1, 128256),
]
SGLANG = [
    ({"key": "0123456789abcdef", "context_window": 4}, 151936),
    ({"key": "0xFEDCBA9876543210", "context_window": 1}, 32000),
    (
        {
            "key": "0123456789abcdef",
            "key_b": "1111222233334444",
            "context_window": 2,
            "mixing_probability": 0.3,
        },
        128256,
    ),
]


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def jenkins(token):
    i = signed(token + 1, 32)
    i = signed(i - signed(i << 6, 32), 32)
    i = signed(i ^ (i >> 17), 32)
    i = signed(i - signed(i << 9, 32), 32)
    i = signed(i ^ signed(i << 4, 32), 32)
    i = signed(i - signed(i << 3, 32), 32)
    i = signed(i ^ signed(i << 10, 32), 32)
    return signed(i ^ (i >> 15), 32)


def philox(counter, k0, k1):
    a, b, c, d = counter
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b = (second >> 32) ^ b ^ k0, second & MASK
        c, d = (first >> 32) ^ d ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return a, b, c, d


def sbw_word(key, scheme, context, token):
    if scheme == "selfhash":
        hashes = [*map(jenkins, context[1:]), jenkins(token)]
        seed = min(signed(key * h * hashes[-1], 64) for h in hashes)
    else:
        seed = key * sum(context)
    seed &= (1 << 64) - 1
    return philox((token // 4, 0, 0, 0), seed & MASK, seed >> 32)[token % 4] & 0x7FFFFFFF


def sbw():
    for number, (key, scheme, width, gamma, size) in enumerate(SBW):
        ids = token_ids(size, 190 + number, 0)
        coins = ""
        for context, token in windows([-1] * width + ids, width):
            word = sbw_word(key, scheme, context, token)
            coins += str(int(word < int(gamma * 0x7FFFFFFF)))
        config = {
            "algorithm": "sbw",
            "key": key,
            "sbw_scheme": scheme,
            "context_width": width,
            "sbw_gamma": gamma,
            "sbw_delta": 2.0,
        }
        yield {"config": config, "token_ids": ids, "coins": coins}


def rotate(value, bits):
    return ((value << bits) | (value >> (32 - bits))) & MASK


def murmur(*words):
    state = 0
    for word in words:
        value = rotate(word * 0xCC9E2D51 & MASK, 15) * 0x1B873593 & MASK
        state = rotate(state ^ value, 13) * 5 + 0xE6546B64 & MASK
    state ^= 4 * len(words)
    state = (state ^ state >> 16) * 0x85EBCA6B & MASK
    state = (state ^ state >> 13) * 0xC2B2AE35 & MASK
    return state ^ state >> 16


def halves(text):
    key = int(text, 16)
    return key & MASK, key >> 32


def sglang():
    for number, (config, size) in enumerate(SGLANG):
        ids = token_ids(size, 200 + number, config["context_window"])
        coins = []
        for context, token in windows(ids, config["context_window"]):
            hashed, key = murmur(*context), halves(config["key"])
            if "key_b" in config:
                coin = murmur(*key, *halves(config["key_b"]), hashed)
                if coin >= int(config["mixing_probability"] * 2**32):
                    key = halves(config["key_b"])
            coins.append(murmur(*key, hashed, token))
        yield {"config": config, "token_ids": ids, "coins": coins}


def main():
    definition = "the definition in Python integers, not the original"
    write(
        "vllm-sbw",
        "make_definitions",
        f"{definition}; coins: 1 = green, every position, windows padded with -1",
        ("numpy",),
        list(sbw()),
        "read from vLLM pull request 56859 at d6d2f2c, open",
    )
    # SGLang's own known answers, so that a slip in both copies of the definition is seen
    assert murmur(1, 2, 3, 4) == 1145416960
    assert murmur(*halves("0123456789abcdef"), 1145416960, 8191) == 2450309311
    write(
        "sglang-gumbel",
        "make_definitions",
        f"{definition}; coins: the 32-bit word of every position",
        ("numpy",),
        list(sglang()),
        "the hash equals the known answers that SGLang publishes (pull request 37577)",
    )


if __name__ == "__main__":
    main()
