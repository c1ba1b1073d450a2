# PYTHON=... uses that interpreter as it is; otherwise .venv is made when it is missing.
ifdef PYTHON
PY := $(PYTHON)
READY :=
COMPAT :=
DOCS :=
FUZZ :=
EXAMPLES :=
else
PY := .venv/bin/python
READY := .venv/.installed
COMPAT := .venv/.compat
DOCS := .venv/.docs
FUZZ := .venv/.fuzz
EXAMPLES := .venv/.examples
endif
# The oldest Triton that setup.py allows, beside the one that the tests run with.
OLDEST := .venv/triton-oldest

.PHONY: demo docs examples fuzz test test-cpus test-compat check bench bench-gpu compile-gate compile-gate-oldest test-gpu sanitize \
	sanitize-cpu help

help:
	@echo "make demo    train the whole of ULMFiT on this machine's docstrings; writes demo-out/report.html"
	@echo "make test    run the tests, the kernels' in Triton's interpreter among them"
	@echo "make test-cpus  run those with values as other processors would: 10 minutes, 2 cores"
	@echo "make test-compat  compare with fastai, spaCy and other engines and libraries, which it installs"
	@echo "make docs    build the site, warnings as errors, into build/docs"
	@echo "make examples  run the examples, the tutorial and the quick demo as a user would"
	@echo "make fuzz    feed the readers and the tokenizer bytes that a fuzzer finds: 15 minutes"
	@echo "make check   lint and type-check"
	@echo "make bench   answer the benchmarks' questions on the CPU: under 10 minutes, 2 cores"
	@echo "make compile-gate  compile all kernels for GPUs that need not be here, inspect the code, and listen to its launches: 25 minutes, 2 cores"
	@echo "make compile-gate-oldest  the same with the oldest Triton that is supported"
	@echo "make test-gpu      run the tests that need a CUDA device"
	@echo "make bench-gpu     answer them on a CUDA device: under 9 minutes"
	@echo "make sanitize      run some of them under compute-sanitizer"
	@echo "make sanitize-cpu  run the C kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer"

demo: $(READY)
	$(PY) -m ulmfit_fast demo --out demo-out --overwrite

# So many tests at a time where pytest-xdist is there: each keeps to one core, see tests/conftest.py.
# Those of a file begin on one core, so that what they share is mostly made once.
parallel = $(shell $(PY) -c 'import xdist' 2>/dev/null && echo '-n $(1) --dist worksteal -p no:benchmark')

# What hands our objects to other libraries, or to what walks a module, runs in test-compat; what
# compiles for a GPU and launches on a device that only listens, in compile-gate; what a user runs
# from its first line to its last, in examples.
test: $(READY)
	$(PY) -m pytest $(call parallel,2) --ignore=tests/interop --ignore=tests/driver \
		--ignore=tests/project/test_examples.py --ignore=tests/project/test_tutorial.py
	TRITON_INTERPRET=1 $(PY) -m pytest $(call parallel,2) tests/kernels tests/gpu \
		--ignore=tests/kernels/test_barrier_protocol.py

# The tests with values, as processors with fewer instructions and with two threads see them. What
# a processor lacks these variables do not bring: each but lowers what is used.
VALUES := $(addprefix tests/lstm/test_,functional.py backend.py fused.py linear_cross_entropy.py \
	rng.py) $(addprefix tests/nn/test_,lstm.py awd_lstm.py language_model.py classifier.py loss.py \
	dropout.py convert.py) tests/training/test_lm_step.py
C_KERNELS := $(wildcard tests/lstm/test_cpu_kernels_*.py tests/lstm/test_native.py)
KERNEL_VALUES := $(addprefix tests/kernels/test_,lstm_kernels.py lstm_module.py blocks.py \
	dropout_kernels.py cross_entropy_kernel.py device_functions.py)
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
PLAIN := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41
# The C kernels are compiled for such a processor; a flag that the compiler does not know leaves none.
ifeq ($(shell uname -m),x86_64)
AVX2 += ULMFIT_FAST_CFLAGS=-march=x86-64-v3
PLAIN += ULMFIT_FAST_CFLAGS=-march=x86-64
# AMX in plain C, on any such processor.
TILES := -march=x86-64 -DULMFIT_FAST_EMULATE_TILES
endif

test-cpus: $(READY)
	$(AVX2) $(PY) -m pytest $(call parallel,2) $(VALUES) $(C_KERNELS)
	$(PLAIN) $(PY) -m pytest $(call parallel,2) $(VALUES) $(C_KERNELS)
	TEST_THREADS=2 $(PY) -m pytest $(VALUES) $(C_KERNELS)
	$(if $(TILES),ULMFIT_FAST_CFLAGS="$(TILES)" $(PY) -m pytest $(call parallel,2) $(C_KERNELS))
	$(AVX2) TRITON_INTERPRET=1 $(PY) -m pytest $(call parallel,2) $(KERNEL_VALUES)
	$(PLAIN) TRITON_INTERPRET=1 $(PY) -m pytest $(call parallel,2) $(KERNEL_VALUES)

# Its packages come in only now, so that `make test` shows what runs without them.
test-compat: $(COMPAT)
	$(PY) -m pytest tests/compat tests/data/test_spacy_tokens.py tests/data/test_tables.py \
		tests/data/test_other_engines.py tests/runs/test_tensorboard.py tests/interop

docs: $(DOCS)
	$(PY) -m mkdocs build --strict
	$(PY) -m pytest tests/project/test_docs.py

examples: $(EXAMPLES)
	$(PY) -m pytest tests/project/test_examples.py tests/project/test_tutorial.py

fuzz: $(FUZZ)
	$(PY) tests/fuzz/run.py --seconds 60

compile-gate: $(READY)
	$(PY) -m benchmarks.compile_gate --all
	$(PY) -m pytest tests/driver

compile-gate-oldest: $(READY) $(OLDEST)/.installed
	PYTHONPATH=$(OLDEST) $(PY) -m benchmarks.compile_gate --all

test-gpu: $(READY)
	$(PY) -m pytest -m gpu tests/gpu $(call parallel,8)

bench-gpu: $(READY)
	$(PY) -m benchmarks.report --device cuda

# PyTorch's caching allocator would hide what runs past the end of a tensor.
sanitize: $(READY)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
		$(PY) -m pytest -m gpu tests/gpu -k sanitize
	compute-sanitizer --tool racecheck --error-exitcode 1 \
		$(PY) -m pytest -m gpu tests/gpu -k sanitize

# GCC's, which are loaded before Python as that knows nothing of them. Python keeps its own
# allocations apart, so that they are seen as well; those that it never frees are not looked for.
# What a fault prints comes through as the process ends there.
SANITIZED := -fsanitize=address,undefined -fno-sanitize-recover=all -g -O1
sanitize-cpu: $(READY)
	@command -v gcc > /dev/null || { echo "sanitize-cpu needs GCC, and there is none"; exit 1; }
	for flags in "$(SANITIZED)" $(if $(TILES),"$(SANITIZED) $(TILES)"); do \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc CC=gcc \
		ULMFIT_FAST_CFLAGS="$$flags" \
		$(PY) -m pytest --capture=sys -p no:faulthandler -p no:benchmark $(C_KERNELS) || exit; \
	done

check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY)
	$(PY) -m benchmarks.report --device cpu

.venv/.installed: setup.py constraints.txt
	test -d .venv || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt setuptools wheel
	.venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,bench,demo]'
	touch $@

.venv/.compat: .venv/.installed
	.venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[compat,datasets,tensorboard,interop]'
	touch $@

$(OLDEST)/.installed:
	$(PY) -m pip install --quiet --no-deps --target $(OLDEST) triton==3.6.0
	touch $@

.venv/.docs: .venv/.installed
	.venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[docs]'
	touch $@

.venv/.examples: .venv/.installed examples/requirements.txt
	.venv/bin/python -m pip install --quiet -c constraints.txt -r examples/requirements.txt
	touch $@

.venv/.fuzz: .venv/.installed
	.venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[fuzz]'
	touch $@
