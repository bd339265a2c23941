"""`python -m benchmarks.lab`: both stages, under an hour on two cores; rewrites fixtures/."""

from benchmarks.lab import evaluate, stage1, stage2

if __name__ == "__main__":
    stage1.main()
    stage2.main()
    evaluate.main()
