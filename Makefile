# make demo: a whole run on real images. make test: the tests. Both make the environment they need.
PYTHON_IN_ENV = .venv/bin/python

.PHONY: demo test check env format lint types slurm

demo: env
	$(PYTHON_IN_ENV) tools/demo.py $(if $(FASHION_MNIST),--folder "$(FASHION_MNIST)")

test: env slurm
	$(PYTHON_IN_ENV) -m pytest $(TESTS)

check: env
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(MAKE) test

format: env
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

env:
	@sh tools/make_environment.sh

slurm:
	@sh tools/install_slurm.sh
