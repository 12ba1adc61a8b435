# kablate: load a preset, type make. `make help` prints the texts after ## below.
# KEY=VALUE after make overrides the configuration: make MAX_ITERS=100 SEEDS=1,2

.SILENT:
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-print-directory --no-builtin-rules

# Variables of this file, with the targets that take them; all take PYTHON and EXTRAS. All
# others on the command line are settings.
OWN := PYTHON EXTRAS
takes = $(foreach v,$2,$(eval OWN += $v)$(eval READ_$v += $1)$(foreach \
	t,$1,$(eval TAKES_$t += $v)))
OF_MATRIX := all quickstart run continue rerun dry-run estimate as-trained budget status stop
$(call takes,$(OF_MATRIX) sbatch,ONLY SKIP_VERIFY)
$(call takes,all quickstart run continue rerun,ON_DONE)
$(call takes,quickstart,MARGIN)
$(call takes,sbatch,SBATCH)
$(call takes,report,RESULTS OUT MARGIN LOOKS FAMILY)
$(call takes,audit,RESULTS RUN WINDOWS)
$(call takes,compare,A B MARGIN LOOKS)
$(call takes,sample,RESULTS RUN PROMPT TEMPERATURE TOP_K TOP_P SEED STOP COUNT)
$(call takes,eval,RESULTS RUNS OUT TEXT CHOICES TASKS ITEMS)
$(call takes,attention,RESULTS RUN WINDOWS)
$(call takes,inference-bench,RESULTS RUNS OUT BATCHES PROMPT_TOKENS NEW_TOKENS CONTEXTS \
	PEERS REPEATS)
$(call takes,export push,RESULTS RUN FORMAT OUT)
$(call takes,push,REPO)
$(call takes,bundle,RESULTS OUT)
$(call takes,plan,RESULTS DELTA POWER ARMS SD MARGIN LOOKS FAMILY)
$(call takes,data,FORCE)
$(call takes,savedefconfig,NAME)
$(call takes,explain,SYMBOL)
$(call takes,test,PYTEST_ARGS)
$(call takes,bench,OUT PARTS PEERS NANOGPT MICRO_BATCHES REPEATS AT_ONCE)
$(call takes,$(filter-out quickstart,$(OF_MATRIX)) verify plan report compare audit eval \
	sample attention export push bundle explain list-defconfigs overfit data bench \
	inference-bench,JSON)
VARIABLES = $(sort $(foreach v,$(OWN),$(if $(filter $(READ_$v),$(GOALS)),$v)))
# The targets that accept settings.
TAKE_SETTINGS := all quickstart defconfig-% explain dry-run run continue rerun budget \
	estimate as-trained status stop data verify overfit track sbatch audit sample export push \
	bench eval attention inference-bench

# Variables given on the command line, byte for byte. make drops the leading blanks of a
# value, so these are read from the command line of the make process itself.
GIVEN := $(foreach v,$(sort $(.VARIABLES)),$(if \
	$(filter command,$(firstword $(origin $v))),$v))
SETTINGS := $(filter-out $(OWN),$(GIVEN))
# Otherwise make would export their values expanded, and execute a $(shell) in one.
unexport $(GIVEN)
# Scripts import scripts/_bootstrap.py from their own folder.
unexport PYTHONSAFEPATH
blanks = $(subst |,,$(shell LC_ALL=C sed -zn -e 's/^$1:*=\([[:space:]]*\).*/\1|/' \
	-e 'T end' -e h -e ':end' -e '$${x;p}' /proc/$$PPID/cmdline 2>/dev/null))
text = $(if $(filter $1,$(GIVEN)),$(blanks))$(value $1)
quote = '$(subst ','\'',$1)'
# A newline in a value would end the recipe line, and the rest would be executed.
define KABLATE_NEWLINE


endef
export KABLATE_NEWLINE
inline = $(subst $(KABLATE_NEWLINE),'"$$KABLATE_NEWLINE"',$(quote))
arg = $(call inline,$(call text,$1))
typed = $(foreach v,$1,$(call quote,$v=$(call text,$v)))
option = $(if $(filter $1,$(GIVEN)),$(if $(value $1),--$(shell \
	echo $1 | tr A-Z a-z)=$(arg)))
# Options for the variables of the target of a recipe, but for those in $1.
options = $(foreach v,$(filter-out JSON RUN RUNS REPO $1,$(TAKES_$@)),$(call option,$v))
WITH := $(if $(SETTINGS),--overrides "$$KABLATE_SETTINGS")
GOALS := $(or $(MAKECMDGOALS),all)
# Each part of quickstart is called with all of its variables.
PART := $(and $(filter-out 0,$(MAKELEVEL)),$(value KABLATE_PART))
REPORTED :=
TAKEN = $(if $(VARIABLES),; make $(GOALS) takes $(VARIABLES))
ifndef PART
# Also for messages that print the next command (gpt2/settings/rerun_commands.py).
export KABLATE_SETTINGS := $(call typed,$(SETTINGS))
export KABLATE_VARIABLES := $(VARIABLES)
export KABLATE_JOBS := $(call typed,$(foreach v,ONLY SKIP_VERIFY ON_DONE,$(if $(value $v),$v)))
# Results folder of a report or a plan: RESULTS, or OUTPUT_DIR as for a run.
REPORTED := $(firstword $(if $(value RESULTS),RESULTS) $(filter OUTPUT_DIR,$(SETTINGS)))
$(if $(filter 2,$(words $(filter OUTPUT_DIR RESULTS,$(GIVEN)))),$(error \
	RESULTS and OUTPUT_DIR both name the results folder: give one of them))
ifneq ($(filter-out $(if $(filter report plan bundle,$(GOALS)),OUTPUT_DIR),$(SETTINGS)),)
ifeq ($(filter $(TAKE_SETTINGS),$(GOALS)),)
$(error make $(GOALS) takes no settings, but there is $(KABLATE_SETTINGS)$(TAKEN))
endif
endif
$(foreach v,$(filter-out PYTHON EXTRAS,$(filter $(OWN),$(GIVEN))),$(if \
	$(filter $(READ_$v),$(GOALS)),,$(error \
	make $(GOALS) takes no $v, but there is $v=$(value $v): it is for make $(READ_$v)$(TAKEN)))$(if \
	$(call text,$v),,$(warning note: $v= is empty and has no effect)))
endif

# The Python that creates the environment, and the one in it; each is determined once.
BOOT = $(eval BOOT := $(shell for p in .venv/bin/python python3 python python3.13 \
	python3.12 python3.11; do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo "$$p" && break; done))$(or \
	$(BOOT),$(error $(or $(shell command -v python3 >/dev/null && python3 -c '' 2>&1 | \
	sed -n '1s/^/python3 does not start: /p'),$(if $(shell echo y;),kablate needs Python \
	3.11 or newer: there is none on PATH,make cannot run commands: its standard output \
	is closed))))
SETUP = PYTHONSAFEPATH= PYTHON=$(call arg,PYTHON) $(HOLD) $(BOOT) scripts/setup_env.py
BARE = $(eval BARE := $$(call inline,$$(shell $$(SETUP) --print-python)))$(BARE)
# Ctrl-C while Python starts up would print a traceback. GNU env can block the signal
# until the command unblocks it (begin in lib/output.py). exec: make passes SIGTERM on to
# its child and waits for it, which has to be the command, as a shell would just die.
HOLD := $(shell env --block-signal=INT true 2>/dev/null && echo env --block-signal=INT)
PY = exec $(HOLD) $(BARE)

SKIP = $(if $(filter-out 0 1 n y,$(value SKIP_VERIFY)),$(error SKIP_VERIFY=$(value \
	SKIP_VERIFY) is neither y (or 1) nor n (or 0)))$(if $(filter 1 y,$(value SKIP_VERIFY)),--skip-verify)
# An option for a switch on the command line; in the environment FORCE may be meant for
# other programs.
switch = $(if $(filter $1,$(GIVEN)),$(if $(filter-out 0 1 n y,$(value $1)),$(error \
	$1=$(value $1) is neither y (or 1) nor n (or 0)))$(if $(filter 1 y,$(value $1)),--$(shell \
	echo $1 | tr A-Z a-z)))
AS_JSON = $(call switch,JSON)
# Standard output is for the answer alone.
APART = $(if $(AS_JSON),>&2)
# A command about runs that exist.
of_runs = $(PY) $1 --config config.py $(AS_JSON) $(WITH) $(options)
MATRIX = $(PY) scripts/run_test_matrix.py --config config.py $(WITH) $(SKIP) $(AS_JSON) \
	$(call option,ONLY)
CONFIGURED := $(if $(wildcard .config),config.py)
PRESETS := $(patsubst defconfigs/%,defconfig-%,$(wildcard defconfigs/*))

.PHONY: FORCE $(PRESETS) $(shell sed -n 's/^\([a-z-]*\):.*\#\#.*/\1/p' Makefile)

##@ Run
all: run ## run what is configured; type it again to continue
quickstart: | setup ## a small study from set-up to report, in minutes on a CPU
	$(if $(value MARGIN),why=$$($(PY) scripts/report.py $(call option,MARGIN) --help \
		2>&1 >/dev/null) || { echo "$${why#report: }" >&2; exit 2; })
	for part in defconfig-gpt2-quickstart data dry-run run report; do \
		KABLATE_PART=1 $(MAKE) $$part || exit; done
run: config.py | setup ## verify, then run what is missing (JOBS=2: two at a time)
	$(MATRIX) $(if $(PART),--no-table) $(call option,ON_DONE)
continue: run ## the same as run: resume where it stopped
rerun: config.py | setup ## run jobs again and keep the old (STEPS=5, ONLY='adamw-*')
	$(MATRIX) --rerun $(call option,ON_DONE)
status: config.py | setup ## progress of every run, also while they run
	$(MATRIX) --status
stop: config.py | setup ## write checkpoints and stop the runs
	$(MATRIX) --stop
sbatch: config.py | setup ## print missing runs as a Slurm array (SBATCH='--partition=a')
	$(PY) scripts/print_sbatch.py --config config.py $(WITH) $(SKIP) \
		$(call options,SKIP_VERIFY)
report: $(if $(REPORTED),,config.py) | setup ## tables, plots, verdicts (RESULTS=folder or zip; a,b merges)
	$(PY) scripts/report.py --config config.py $(AS_JSON) $(call options,RESULTS) \
		$(if $(REPORTED),-- $(call arg,$(REPORTED)))
audit: $(CONFIGURED) | setup ## recompute the results of runs (RUN=folder or step, RESULTS=)
	$(call of_runs,scripts/audit.py) -- $(call arg,RUN)
track: config.py | setup ## open the dashboard of the tracker (TRACKER=trackio)
	$(PY) scripts/track.py --config config.py $(WITH)
compare: $(CONFIGURED) | setup ## compare two runs or matrices (A=, B=: folder or step)
	$(PY) scripts/compare.py --config config.py $(AS_JSON) $(call options,A B) \
		-- $(call arg,A) $(call arg,B)

##@ Use what was trained
sample: $(CONFIGURED) | setup ## continue PROMPT with models (RUN=0,5 TEMPERATURE=1 COUNT=100)
	$(call of_runs,scripts/sample.py) -- $(call arg,RUN)
eval: $(CONFIGURED) | setup ## compare models on TEXT, CHOICES, TASKS, repetition (RUNS=0,5)
	$(call of_runs,scripts/eval.py) -- $(call arg,RUNS)
attention: $(CONFIGURED) | setup ## entropy and reciprocity of each head (RUN=0,5 WINDOWS=32)
	$(call of_runs,scripts/attention.py) -- $(call arg,RUN)
inference-bench: $(CONFIGURED) | setup ## speed and memory of generation (RUNS=0,5 BATCHES=1,32)
	$(call of_runs,scripts/inference_bench.py) -- $(call arg,RUNS)
export: $(CONFIGURED) | setup ## a model as a folder for transformers (RUN=5:1337, OUT=folder)
	$(call of_runs,scripts/export.py) -- $(call arg,RUN)
push: $(CONFIGURED) | setup ## export and upload to the hub (RUN=5:1337, REPO=user/name)
	$(call of_runs,scripts/export.py) --repo=$(call arg,REPO) -- $(call arg,RUN)
bundle: $(if $(REPORTED),,config.py) | setup ## report and records as one zip (RESULTS=folder, OUT=file)
	$(PY) scripts/bundle.py --config config.py $(AS_JSON) $(call options,RESULTS) \
		$(if $(REPORTED),-- $(call arg,$(REPORTED)))

##@ Look before you run
dry-run: config.py | setup ## list every job and its settings, verify each step
	$(MATRIX) --dry-run
plan: $(CONFIGURED) | setup ## seeds needed to detect DELTA=0.003 (POWER, ARMS, SD, RESULTS)
	$(PY) scripts/plan_seeds.py --config config.py $(AS_JSON) $(call options,RESULTS) \
		$(if $(REPORTED),--results=$(call arg,$(REPORTED)))
estimate: config.py | setup ## time a few updates of each arm: hours, memory, disk
	$(MATRIX) --estimate
as-trained: config.py | setup ## compare each step's gradients, as trained, with the formulas
	$(MATRIX) --as-trained
budget: config.py | setup ## parameters, FLOPs, KV cache and GPU memory of each step
	$(MATRIX) --budget
verify: $(CONFIGURED) | setup ## verify every step of the registry
	$(PY) scripts/verify.py --config config.py $(AS_JSON) $(WITH)
overfit: $(CONFIGURED) | setup ## overfit one batch with every step (STEPS=0,5)
	$(PY) scripts/overfit.py --config config.py $(AS_JSON) $(WITH)
data: config.py | setup ## prepare the configured text (FORCE=1: prepare it again)
	$(PY) scripts/prepare_data.py --config config.py $(WITH) $(AS_JSON) $(call switch,FORCE)

##@ Configure
list-defconfigs: | setup ## list the presets
	$(PY) scripts/kconfig.py list-defconfigs $(AS_JSON)
defconfig-%: FORCE | setup ## load a preset, and keep KEY=VALUE with it; a+b merges two
	$(PY) scripts/kconfig.py defconfig $(WITH) -- $(call inline,$*)
$(PRESETS): defconfig-%: | setup
	$(PY) scripts/kconfig.py defconfig $(WITH) -- $(call inline,$*)
menuconfig: | setup ## edit the configuration in menus
	$(PY) scripts/kconfig.py menuconfig
guiconfig: | setup ## edit the configuration in a window
	$(PY) scripts/kconfig.py guiconfig
oldconfig: | setup ## update an old .config, asking about new symbols
	$(PY) scripts/kconfig.py oldconfig
olddefconfig: | setup ## update an old .config with defaults for new symbols
	$(PY) scripts/kconfig.py olddefconfig
savedefconfig: | setup ## write .config to defconfigs/NAME (NAME=gpt2-mine)
	$(PY) scripts/kconfig.py savedefconfig -- $(call arg,NAME)
explain: | setup ## what is not at its default; all about one (SYMBOL=MAX_ITERS)
	$(PY) scripts/kconfig.py explain $(WITH) $(AS_JSON) -- $(call arg,SYMBOL)

##@ Develop
setup: ## create the environment (EXTRAS=trackers,ray,gpu,eval,docs)
	$(SETUP) --extras=$(call arg,EXTRAS) $(if $(filter setup,$(MAKECMDGOALS)),--say) $(APART)
# Three workers for two cores: tests spend a third of their time waiting for processes.
test: | setup ## run the tests (PYTEST_ARGS='-m slow': the slow ones)
	$(BARE) -c 'import os, shlex, sys; sys.excepthook = lambda kind, error, trace: \
		print("PYTEST_ARGS:", error, file=sys.stderr); \
		os.execv(sys.executable, [sys.executable, "-m", \
		"pytest", *sys.argv[1:-1], *shlex.split(sys.argv[-1])])' \
		-q -n 3 --dist worksteal $(call arg,PYTEST_ARGS)
bench: | setup ## measure speed into bench_results/ (PARTS=gpu,matrix STEPS=0)
	$(PY) scripts/bench.py $(AS_JSON) $(if $(SETTINGS),--settings "$$KABLATE_SETTINGS") $(options)
docs: | setup ## build the documentation as a site in site/ (EXTRAS=docs)
	$(PY) scripts/build_docs.py
check: | setup ## check formatting, style, types, and run the fast tests
	$(PY) scripts/check.py
format: | setup ## fix formatting and generated text
	$(PY) scripts/check.py --fix
install-hooks: | setup ## make git check each commit
	$(PY) scripts/install_hooks.py install
remove-hooks: | setup ## remove these hooks
	$(PY) scripts/install_hooks.py remove
clean: ## remove caches
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf kablate.egg-info build/lib build/bdist.*  # of pip install
	find gpt2 lib scripts tests -name __pycache__ -prune -exec rm -rf {} +
mrproper: clean ## also .config, config.py and our .venv; keep results and data
	$(BOOT) scripts/setup_env.py --remove
	rm -f .config .config.old config.py
	if [ -d .kablate ] && [ ! -L .kablate ]; then \
		(cd .kablate && rm -f made.config certificates.json setup.lock .*.tmp) && \
		find .kablate -maxdepth 0 -empty -delete; fi
	echo "kept: results, prepared data and defconfigs"
help: ## print this list
	trap '' PIPE; { awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} \
		/^[a-z%-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' Makefile; echo; \
	echo "KEY=VALUE overrides a setting: make MAX_ITERS=100 SEEDS=1,2 STEPS=0,5,8-9"; \
	echo "JSON=y prints what a command finds as JSON (docs/json.md): make JSON=y status"; \
	} 2>/dev/null; exit 0  # also if a pipe to head closes early

# A restored .config may be older than config.py, so contents are compared, not times.
IS_OTHER := $(shell cmp .config .kablate/made.config 2>&1)
config.py: .config Kconfig $(wildcard gpt2/Kconfig* gpt2/mechanisms/*/Kconfig) $(if $(IS_OTHER),FORCE) | setup
	$(PY) scripts/kconfig.py generate $(APART)

.config:
	printf '%s\n' "nothing is configured yet. Type one of" \
		"  make quickstart        run a small study from start to end" \
		"  make list-defconfigs   list the presets; make defconfig-NAME loads one" \
		"  make menuconfig        configure in menus" >&2
	exit 1
