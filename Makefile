# The only front door. `make help` lists what there is.
.DEFAULT_GOAL := help
BIN := .venv/bin
# How many tests run beside each other; they wait more than they compute.
WORKERS := 3
SOURCES := aemd clients/python tests tools benchmarks

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Make .venv with aemd, aemctl, aemhttpd and the package aem
	@tools/setup.sh run

.PHONY: demo
demo: setup ## A tour of at most a minute, on a daemon of its own
	@$(BIN)/python tools/demo.py

.PHONY: dev
dev:
	@tools/setup.sh dev

.PHONY: test
test: dev ## Run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# Of the simulated core, in each of the four tests.
RUNS := 2500

.PHONY: simulate
simulate: dev ## Simulate the core many times, with faults: make simulate RUNS=2500
	@SIMULATED_RUNS=$(RUNS) $(BIN)/python -m pytest -n $(WORKERS) --timeout 3600 --hypothesis-show-statistics \
		tests/property $(ARGS)

# Of the model test; each is one run in each of its files.
SEEDS := 1000-1049

.PHONY: model
model: dev ## Run the model test with other seeds: make model SEEDS=1-100,117
	@MODEL_SEEDS=$(SEEDS) $(BIN)/python -m pytest -n $(WORKERS) tests/model $(ARGS)

.PHONY: check
check: dev ## Lint, types, import layers, proto, generated files
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/buf lint
	$(BIN)/buf format --exit-code >/dev/null
	$(BIN)/python tools/diagrams.py --check
	$(BIN)/python tools/man.py --check
	$(BIN)/python tools/metrics.py --check
	@tools/setup.sh proto
	PATH=.venv-proto/bin:$$PATH .venv-proto/bin/python tools/gen_proto.py --check

.PHONY: fix
fix: dev ## Mend what check can mend by itself
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/buf format -w
	$(BIN)/python tools/diagrams.py
	$(BIN)/python tools/man.py
	$(BIN)/python tools/metrics.py

.PHONY: proto
proto: ## Generate the Python code of proto/
	@tools/setup.sh proto
	PATH=.venv-proto/bin:$$PATH .venv-proto/bin/python tools/gen_proto.py

.PHONY: breaking
breaking: dev ## Hold proto/ against the last commit
	$(BIN)/buf breaking --against '.git#branch=main'

.PHONY: lock
lock: dev ## Lock the Python packages anew, with hashes
	@$(BIN)/python tools/lock.py

.PHONY: bench-quick
bench-quick: ## Compare with Redis, D-Bus and plain servers, in three minutes
	@tools/setup.sh bench
	@$(BIN)/python -m benchmarks.quick

.PHONY: bench-floods
bench-floods: dev ## Latency of one user's events while another one floods, in two minutes; as root
	@$(BIN)/python -m benchmarks.floods

.PHONY: bench-stall
bench-stall: dev ## What one client among a hundred that does not read costs the others, in two minutes
	@$(BIN)/python -m benchmarks.stall

.PHONY: soak
SOAK_SECONDS := 600
soak: dev ## Whether memory and descriptors stay flat: a simulated day, and ten minutes under load
	@$(BIN)/python -m benchmarks.soak $(SOAK_SECONDS)

.PHONY: deb
deb: ## Build the Debian package into dist/
	@tools/setup.sh deb
	@tools/deb.sh

.PHONY: clean
clean: ## Remove what the targets above made
	rm -rf .venv .venv-proto build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
