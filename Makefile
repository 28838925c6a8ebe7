# make demo: a whole run on real images. make test: the tests. make bench, make bench-gpu: ours beside its peers.
# All make the environment they need.
PYTHON_IN_ENV = .venv/bin/python

.PHONY: demo test check bench bench-gpu env format lint types slurm

demo: env
	$(PYTHON_IN_ENV) tools/demo.py $(if $(FASHION_MNIST),--folder "$(FASHION_MNIST)")

test: env slurm
	$(PYTHON_IN_ENV) -m pytest $(TESTS)

check: env
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(MAKE) test

bench: env
	$(PYTHON_IN_ENV) -m benchmarks $(BENCH)

bench-gpu: env
	$(PYTHON_IN_ENV) -m benchmarks.gpu $(BENCH)

format: env
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

env:
	@sh tools/make_environment.sh

slurm:
	@sh tools/install_slurm.sh
