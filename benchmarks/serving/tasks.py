"""Small tasks with an answer that a program can check: questions, and Python functions to write.

Written for a model of 135 M parameters: one right word or number, one short function.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass

QUESTION = "{} Answer with one word or number only."
CODE = "Write a Python function {} Reply with the code only, in one code block."
_SECONDS = 5
_MEMORY = 1 << 29


@dataclass(frozen=True)
class Task:
    """What is asked, and how an answer is judged: a word to be found, or a test to be passed."""

    text: str
    word: str = ""
    test: str = ""

    def judge(self, response: str) -> bool:
        """Whether the response is right."""
        if self.word:
            return re.search(rf"(?<!\w){re.escape(self.word)}(?!\w)", response, re.I) is not None
        return _passes(_code_of(response), self.test)


QUESTIONS = [
    Task(QUESTION.format(question), word=word)
    for question, word in (
        ("What is the capital of France?", "Paris"),
        ("What is the capital of Italy?", "Rome"),
        ("What is the capital of Japan?", "Tokyo"),
        ("What is the capital of Germany?", "Berlin"),
        ("What is the capital of Spain?", "Madrid"),
        ("What is the capital of Egypt?", "Cairo"),
        ("What is 2 + 3?", "5"),
        ("What is 10 - 4?", "6"),
        ("What is 3 times 3?", "9"),
        ("What is 7 + 8?", "15"),
        ("What is half of 20?", "10"),
        ("How many days are in a week?", "7"),
        ("How many months are in a year?", "12"),
        ("How many legs does a spider have?", "8"),
        ("What colour is the sky on a clear day?", "blue"),
        ("What colour is grass?", "green"),
        ("What is the opposite of hot?", "cold"),
        ("What is the opposite of up?", "down"),
        ("What is the chemical formula of water?", "H2O"),
        ("Which planet do we live on?", "Earth"),
        ("What is the largest ocean on Earth?", "Pacific"),
        ("Which animal barks?", "dog"),
        ("Who wrote Romeo and Juliet?", "Shakespeare"),
        ("In which language is 'bonjour' a greeting?", "French"),
    )
]
FUNCTIONS = [
    Task(CODE.format(text), test=test)
    for text, test in (
        ("add(a, b) that returns the sum of a and b.", "assert add(2, 3) == 5"),
        ("multiply(a, b) that returns their product.", "assert multiply(4, 5) == 20"),
        ("square(x) that returns x squared.", "assert square(7) == 49"),
        ("is_even(n) that returns True if n is even.", "assert is_even(4) and not is_even(3)"),
        ("maximum(a, b) that returns the larger one.", "assert maximum(3, 9) == 9"),
        ("reverse(text) that returns the string reversed.", "assert reverse('abc') == 'cba'"),
        ("length(items) that returns how many items a list has.", "assert length([1, 2]) == 2"),
        ("total(items) that returns the sum of a list.", "assert total([1, 2, 3]) == 6"),
        ("first(items) that returns the first item.", "assert first([7, 8]) == 7"),
        ("upper(text) that returns the text in capitals.", "assert upper('ab') == 'AB'"),
        ("negate(x) that returns minus x.", "assert negate(3) == -3"),
        ("double(x) that returns two times x.", "assert double(4) == 8"),
    )
]


def _code_of(response: str) -> str:
    """The first code block, or everything."""
    block = re.search(r"```(?:python)?\s*\n(.*?)(?:```|$)", response, re.S)
    return block.group(1) if block else response


def _passes(code: str, test: str) -> bool:
    """Run code and test in a process of its own: no environment, little time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", f"{code}\n{test}\n"],
                cwd=folder,
                env={},
                timeout=_SECONDS,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                preexec_fn=_limit,
            )
        except (subprocess.TimeoutExpired, ValueError):
            return False
    return done.returncode == 0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
