# make demo: a whole run on real images. make test: the tests. make bench, make bench-gpu: ours beside its peers.
# make chaos: a run that is killed 200 times. make fuzz: damaged files for every reader, ten minutes a format.
# make docs: the site, in site/. All make the environment they need.
PYTHON_IN_ENV = .venv/bin/python

# a file's tests stay together, for what they share is made once; many of them wait for jobs that start
IN_PARALLEL = -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check bench bench-gpu chaos docs fuzz env format lint types programs

demo: env
	$(PYTHON_IN_ENV) tools/demo.py $(if $(FASHION_MNIST),--folder "$(FASHION_MNIST)")

test: env programs
	$(PYTHON_IN_ENV) -m pytest $(if $(TESTS),$(TESTS),$(IN_PARALLEL))

chaos: env programs
	ANDSCALE_KILLS=200 $(PYTHON_IN_ENV) -m pytest -s --timeout 0 tests/faults/test_kills.py

fuzz: env
	ANDSCALE_FUZZ_SECONDS=$(or $(SECONDS),600) $(PYTHON_IN_ENV) -m pytest --timeout 0 tests/security

check: env
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(MAKE) test

bench: env
	$(PYTHON_IN_ENV) -m benchmarks $(BENCH)

bench-gpu: env
	$(PYTHON_IN_ENV) -m benchmarks.gpu $(BENCH)

# Material says at each start that it ends in 2027; zensical, its successor, reads the same mkdocs.yml
docs: env
	NO_MKDOCS_2_WARNING=1 $(PYTHON_IN_ENV) -m mkdocs build --strict

format: env
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

env:
	@sh tools/make_environment.sh

programs:
	@sh tools/install_test_programs.sh
