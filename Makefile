# The commands of the project. Each does its own set-up; the second time that costs nothing.

BIN := .venv/bin

.PHONY: chaos recovery soak help setup demo test lint check tiny

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup:  ## build .venv from requirements/cpu.txt (PYTHON=... picks the interpreter of a new one)
	@PYTHON="$(PYTHON)" bash scripts/setup.sh

demo: setup  ## the whole system on this CPU: train the tiny model, measure it before and after
	@$(BIN)/museg demo

test: setup  ## all tests
	@$(BIN)/python -m pytest

lint: setup  ## style and types: ruff, mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

chaos: setup  ## 60 steps whose processes are killed at random, beside undisturbed runs (SEED=n; about 12 minutes)
	@$(BIN)/python -m tests.chaos $(SEED)

recovery: setup  ## kills an engine, an actor and a node of the real stack: how soon each is noticed and replaced (minutes)
	@$(BIN)/python -m tests.chaos.recovery

soak: setup  ## 1,000 small steps: whether memory, files, threads, processes or shared memory grow (about 20 minutes)
	@$(BIN)/python -m tests.soak

tiny: setup  ## train the packaged museg-tiny anew from random weights (slow)
	@$(BIN)/python -m scripts.warm_start

check:  ## what continuous integration runs
	@bash .ci/run
