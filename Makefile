# make book and make test do everything on a fresh machine. TORCH='…' passes pip arguments for torch.
.PHONY: help setup book serve pdf slides check lint unit notebooks-run pages test test-all colab all-slides exercises matrix claims map guide oracles mutation bench lab lighthouse test-gpu tested-on publish-dry-run newest clean
.DEFAULT_GOAL := help
export TORCH PYTHON
# The work is many small tensors, and it is spread over processes: more threads would only wait for each other.
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
STATED := requirements.txt requirements-test.txt pyproject.toml package.json package-lock.json scripts/setup.sh
NARROW := $(BIN)/ruff format --isolated --line-length 84 --target-version py311
PYTEST := $(BIN)/python -m pytest
say = @printf '\n== %s\n' '$(1)'

help:  ## say what the commands are
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 17

.venv/book.stamp: $(STATED)
	@scripts/setup.sh book

.venv/test.stamp: $(STATED)
	@scripts/setup.sh test

setup: .venv/test.stamp  ## install everything that the other commands need

book: .venv/book.stamp  ## build the book, and say where to open it
	@$(BIN)/python scripts/build_book.py

serve: book  ## build the book and serve it on this machine
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _build/html

pdf: .venv/test.stamp book  ## print the whole book into _build/attncourse.pdf (some minutes)
	@$(BIN)/python -m scripts.pdf

slides: .venv/test.stamp book  ## make slides of every chapter, in _build/slides
	@$(BIN)/python scripts/slides.py

lint: .venv/test.stamp
	$(call say,Lint)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(NARROW) --check notebooks solutions

unit: .venv/test.stamp
	$(call say,Unit tests; oracles and mutants)
	@$(PYTEST) -m 'not browser' -n 2 --dist loadgroup

check: lint unit  ## lint and unit tests, without notebooks and pages (a quarter of an hour)

notebooks-run: .venv/test.stamp
	$(call say,Every notebook from top to bottom)
	@$(PYTEST) --nbval-lax --nbval-cell-timeout=120 -n 2 --dist loadfile notebooks solutions exercises

pages: .venv/test.stamp
	$(call say,The book and its pages in a browser)
	@$(BIN)/python scripts/build_book.py
	@$(PYTEST) -m browser -n 2 --dist loadgroup

test:  ## everything that CI runs
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory notebooks-run
	@$(MAKE) --no-print-directory pages
	$(call say,All checks passed$(shell [ "$$(id -u)" = 0 ] || echo " but those of isolation level B: sudo $(PYTEST) tests/grading"))

test-all: test colab all-slides lighthouse  ## before a release: everything, the slow checks too

colab: .venv/test.stamp  ## run every notebook as Colab would, and grade what Colab saves
	$(call say,Every notebook as in Colab)
	@$(BIN)/python -m scripts.colab_check

all-slides: .venv/test.stamp book
	$(call say,The slides of every chapter in a browser)
	@SLIDES=all $(PYTEST) -m browser -n 2 tests/book/test_slides.py

lighthouse: .venv/test.stamp  ## audit five kinds of page as on a phone (after make book)
	$(call say,Lighthouse)
	@cd tests/lighthouse && PATH="$$PATH:$(CURDIR)/$(BIN)" npm ci --silent --no-audit --no-fund
	@PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python -m tests.lighthouse

test-gpu: .venv/test.stamp  ## notebooks, comparisons, mechanisms and checks on a GPU; writes the page "tested on"
	@$(BIN)/python -m scripts.tested_on --device cuda

tested-on: .venv/test.stamp  ## the same on a CPU
	@$(BIN)/python -m scripts.tested_on --device cpu

exercises: .venv/test.stamp  ## put the set-up cell in, format, and make exercises/ from solutions/
	@$(BIN)/python -m scripts.setup_cell
	@$(NARROW) notebooks solutions
	@$(BIN)/python scripts/exercises.py

matrix: .venv/test.stamp  ## recompute which mistakes the checks catch and name: CHAPTERS='gqa mla', or all
	@$(BIN)/python -m tests.checks.matrix $(CHAPTERS)

claims: .venv/test.stamp  ## recompute the claims after a change of data/claims.yml or of a result
	@$(BIN)/python -m scripts.claims

map: .venv/book.stamp  ## recompute the theorems of the map of attention
	@$(BIN)/python -m attncourse.lab.theorems

guide: .venv/test.stamp  ## run the instructor guide's commands again: its transcripts and pictures
	@$(BIN)/python -m scripts.guide

oracles: .venv/test.stamp  ## compare with production implementations again, and write the differences
	@$(PYTEST) tests/oracles -n 2 --dist loadgroup --write-oracles

mutation: .venv/test.stamp  ## mutate the mechanisms, and see whether the tests notice (long; resumes): MODULES='gqa mla'
	@$(BIN)/python -m tests.mutation $(MODULES)

bench: .venv/test.stamp  ## measure: ratios within one process
	@for script in benchmarks/*.py; do $(BIN)/python $$script; done

lab: .venv/book.stamp  ## run the experiments whose results are committed (long; resumes)
	@$(BIN)/python -m attncourse.lab

publish-dry-run: .venv/book.stamp  ## make what a fork publishes, in _build/publish: REPOSITORY=owner/name [SITE=https://…]
	@$(BIN)/python scripts/build_book.py
	@$(BIN)/python -m scripts.publish --repository '$(REPOSITORY)' --site '$(SITE)'

newest:  ## in a fresh clone: install the newest versions of everything, run the checks, report in _build/newest.md
	@$(or $(PYTHON),python3) -m scripts.newest

clean:  ## remove what was built, keep .venv
	@rm -rf _build
