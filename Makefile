# Everything here rehearses on this machine: no target touches a cloud or asks for an account.
# Production goes by `pulumi up`.

STACK ?= local
ARGS ?=

# The bootstrap prepares the Python environment, which takes no time when nothing changed, and prints uv's path.
RUN = uv=$$(rehearsal/bootstrap.sh) && "$$uv" run --frozen --no-sync

# uv trusts authorities of its own; where the system has its list, that one counts, as for everything else here. (The
# second name is what older versions call it.)
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS := true
export UV_NATIVE_TLS := true
endif

# Without compiled modules every start of Python, and there are five in a run, takes a second longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help up preview down outputs verify bench test test-all quick lint

help: ## Show this list
	@echo "make TARGET [STACK=local] [ARGS='arguments for pulumi']"
	@sed -n 's/^\([a-z-]*\):.*## /  \1	/p' Makefile | expand -t 12

up: ## Bring a stack up on this machine: real servers in containers, nothing to pay
	@$(RUN) python -m rehearsal up $(STACK) -- $(ARGS)

preview: ## Show what `make up` would do, and what the policies say to it
	@$(RUN) python -m rehearsal preview $(STACK) -- $(ARGS)

down: ## Remove the stack's machines, networks, state and throw-away secrets
	@$(RUN) python -m rehearsal down $(STACK)

outputs: ## Print the stack's outputs as JSON
	@$(RUN) python -m rehearsal outputs $(STACK)

verify: ## Check the stack's machines against the guide
	@$(RUN) uds verify $(STACK) --rehearsal $(ARGS)

bench: ## Measure what the README promises; ARGS="--against FOLDER" adds ansible with a copy of dev-sec's collection
	@$(RUN) python -m rehearsal bench $(STACK) $(ARGS)

test: lint ## Lint, then the tests: unit, policies, rehearsal
	@$(RUN) python -m rehearsal prepare
	@# Two workers: the tests wait for machines more than they work. What a worker gets, tests/rehearsal/conftest.py says.
	@# Long ones come first, in the order of `testpaths`.
	@$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)
	@echo "More systems, and more of the other cloud, are tested by: make test-all (an hour; for every night)"

test-all: ## Lint, then every test, also those that are too long for every change
	@$(MAKE) test ARGS="--nightly $(ARGS)"

quick: lint ## Lint, then the tests that need no machine and no root: unit, policies
	@$(RUN) pytest -n 2 --dist loadfile tests/unit tests/policies $(ARGS)

lint: ## Check style, types, shell scripts, Go code and workflows
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) mypy
	@# Scripts are known by their first line, as the kernel knows them; Python and prose only quote such lines.
	@$(RUN) sh -c "git grep -lzE '^#!.*[/ ](ba|da)?sh( |$$)' -- ':!*.py' ':!*.md' ':!*.j2' ':!*.go' | xargs -0r shellcheck"
	@# The toolchain module needs a recent Go, which only machines without Pulumi's own release need.
	@cd rehearsal/toolchain && if go list -m >/dev/null 2>&1; then \
	  test -z "$$(gofmt -l cmd)" && CGO_ENABLED=0 go vet -trimpath ./... && CGO_ENABLED=0 go test -trimpath ./...; fi
	@# Workflows, likewise; it asks the environment's shellcheck about the scripts in them.
	@if (cd rehearsal/toolchain && go list -m) >/dev/null 2>&1; then \
	  $(RUN) go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12; fi
