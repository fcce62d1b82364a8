# What there is to do with a clone. `make help` lists it; each target sets up what it needs.

SHELL := /bin/bash
export FOVEA_CACHE ?= $(HOME)/.cache/fovea
# rustup may have been installed just now.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

CARGO_RUN := cargo run --quiet --release --locked -p fovea --
# Where there is no street video: ten seconds of GStreamer's test picture.
TEST_SOURCE := test://?frames=300

.DEFAULT_GOAL := help
.PHONY: help run test bench models-eval train-libtorch build setup clean

help: ## Show this list
	@echo 'fovea: object detection on video, on small computers'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

run: build ## Annotate a street video: out/annotated.mp4, out/detections.jsonl, out/report.json
	@mkdir -p out
	@if video=$$(scripts/street-video); then source=$$video; else source='$(TEST_SOURCE)'; \
	    echo 'make run: no street video (see above): the built-in test picture shows the pipeline at work; nothing in it is to be detected' >&2; fi; \
	$(CARGO_RUN) run pipelines/file-replay.toml --source "$$source" \
	    --sink out/annotated.mp4 --detections out/detections.jsonl --report out/report.json
	@ls -l out/annotated.mp4 out/detections.jsonl out/report.json

test: ## Format, lints, all tests, loom, docs; FOVEA_TRAIN=1 adds the trainer on libtorch
	@scripts/test

bench: build ## Speed of the kernels and of the pipeline without a screen
	@cargo bench --quiet --locked -p fovea
	@if video=$$(scripts/street-video); then source=$$video; else source='$(TEST_SOURCE)'; fi; \
	$(CARGO_RUN) bench --source "$$source" --model models/default --pace max

models-eval: setup ## Figures of every shipped model, float and int8, and on worse pictures: DATA=FOLDER (annotations.json, images/)
	@[ -n "$(DATA)" ] || { echo 'make models-eval: which data? DATA=FOLDER with annotations.json and images/' >&2; exit 2; }
	@cargo run --quiet --release --locked -p fovea-train -- card --robustness --data "$(DATA)" \
	    $(filter-out models/default,$(patsubst %/manifest.toml,%,$(wildcard models/*/manifest.toml)))

train-libtorch: setup ## Fetch libtorch (540 MB) and build the trainer; then: scripts/fovea-train --help
	@scripts/setup --train
	@scripts/fovea-train --version

build: setup ## Build target/release/fovea
	@cargo build --release --locked -p fovea

setup: ## Install what is missing: system packages, Rust
	@scripts/setup

clean: ## Remove build results and out/; the caches outside the clone stay
	@rm -rf out
	@if command -v cargo >/dev/null; then cargo clean; fi
