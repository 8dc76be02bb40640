# kone's targets. `make` alone prints this help; targets that need root say so.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help venv deps up down clean check test vm ring3 ring4 soak replay bench fuzz generate binary unit image

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `make up` keeps while the node runs without systemd: its pid file and log. KONE_… variables are settings of the
# node (KONE_DATA_DIR, KONE_INSTANCE), so that `make up` can be tried beside another node.
RUN := .run
DATA := $(or $(KONE_DATA_DIR),/var/lib/kone)
PACKAGES := iptables nftables ipset busybox-static python3-venv conntrack iproute2
KUBECTL := $(BIN)/kubectl --kubeconfig $(DATA)/admin.kubeconfig
# The host's busybox may lack a working resolver: the page is fetched by Python.
FETCH := $(BIN)/python -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).read().decode(), end="")'
SYSTEMD := $(shell test -d /run/systemd/system && echo yes)

help: ## print this help
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(VENV)/.made ## make .venv with kone and its test tools (no root)

$(VENV)/.made: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

deps: ## install what the node needs from Debian (root)
	@missing=""
	for package in $(PACKAGES); do
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"
	done
	command -v dockerd >/dev/null || missing="$$missing docker.io"
	if [ -n "$$missing" ]; then
		echo "installing$$missing"
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	fi

$(RUN):
	@mkdir -p $(RUN)

# A dockerd that answers is used as it is; else one is started, by systemd where it runs.
.PHONY: docker
docker: deps | $(RUN)
	@docker version >/dev/null 2>&1 && exit 0
	if [ -n "$(SYSTEMD)" ]; then
		systemctl start docker
	else
		setsid nohup dockerd >$(RUN)/dockerd.log 2>&1 </dev/null & echo $$! >$(RUN)/dockerd.pid
	fi
	for _ in $$(seq 60); do docker version >/dev/null 2>&1 && exit 0; sleep 0.5; done
	echo "Docker does not answer; see $(RUN)/dockerd.log" >&2
	exit 1

# The node as a service where systemd runs, else as a background process with a pid file and a log.
.PHONY: node
node: venv docker | $(RUN)
	@if $(BIN)/kone status >/dev/null 2>&1; then exit 0; fi
	if [ -n "$(SYSTEMD)" ]; then
		sed 's|@KONE@|$(abspath $(BIN)/kone)|' systemd/kone.service >/etc/systemd/system/kone.service
		systemctl daemon-reload
		systemctl enable --quiet --now kone
	elif ! { [ -e $(RUN)/kone.pid ] && kill -0 $$(cat $(RUN)/kone.pid) 2>/dev/null; }; then
		setsid nohup $(BIN)/kone server >>$(RUN)/kone.log 2>&1 </dev/null & echo $$! >$(RUN)/kone.pid
	fi
	for _ in $$(seq 240); do
		$(BIN)/kone status >/dev/null 2>&1 && exit 0
		if [ -e $(RUN)/kone.pid ] && ! kill -0 $$(cat $(RUN)/kone.pid) 2>/dev/null; then
			rm $(RUN)/kone.pid; tail -n 1 $(RUN)/kone.log >&2; exit 1
		fi
		sleep 0.25
	done
	$(BIN)/kone status || true
	echo "the node is not ready after 60 s; see $(if $(SYSTEMD),journalctl -u kone,$(RUN)/kone.log)" >&2
	exit 1

image: docker ## build the example's image (root)
	@docker image inspect example.kone/hello:1 >/dev/null 2>&1 && exit 0
	context=$$(mktemp -d)
	cp examples/hello/* $$context/ && cp "$$(command -v busybox)" $$context/busybox
	DOCKER_BUILDKIT=0 docker build --quiet --label kone.example=hello --tag example.kone/hello:1 $$context >/dev/null 2>&1
	rm -r $$context

up: node image ## run a node and a served page on this machine (root)
	@$(KUBECTL) apply -f examples/hello.yaml
	$(KUBECTL) rollout status deployment/hello --timeout=60s
	address=$$($(KUBECTL) get service hello -o jsonpath='{.spec.clusterIP}')
	echo; echo "From the host, by the Service's address http://$$address:"
	for _ in $$(seq 40); do page=$$($(FETCH) "http://$$address/" 2>/dev/null) && break; sleep 0.25; done
	echo "$${page:?the Service did not answer}"
	echo; echo "From inside a pod, by its name http://hello.default.svc.cluster.local:"
	$(KUBECTL) exec deployment/hello -- /bin/fetch hello.default.svc.cluster.local
	echo; $(KUBECTL) get nodes,pods,svc -o wide
	echo
	echo "kubeconfig: $(DATA)/admin.kubeconfig"
	echo "try next:   export KUBECONFIG=$(DATA)/admin.kubeconfig PATH=$(abspath $(BIN)):\$$PATH"
	echo "            kubectl scale deployment hello --replicas=3; kubectl get pods -w"
	echo "            kubectl logs -f deployment/hello; kubectl exec -it deployment/hello -- /bin/busybox sh"
	echo "            make down (stop the node, leave containers running), make clean (remove every trace)"

down: ## stop the node; containers go on (root)
	@if [ -n "$(SYSTEMD)" ] && [ -e /etc/systemd/system/kone.service ]; then systemctl stop kone; fi
	if [ -e $(RUN)/kone.pid ]; then
		pid=$$(cat $(RUN)/kone.pid)
		if kill -0 $$pid 2>/dev/null; then
			kill $$pid
			for _ in $$(seq 300); do kill -0 $$pid 2>/dev/null || break; sleep 0.25; done
		fi
		rm -f $(RUN)/kone.pid
	fi

clean: down ## remove every trace of the node: containers, links, rules, mounts, files (root)
	@test ! -x $(BIN)/kone || $(BIN)/kone cleanup
	docker image rm --force example.kone/hello:1 >/dev/null 2>&1 || true
	if [ -e /etc/systemd/system/kone.service ]; then
		systemctl disable --quiet kone || true
		rm -f /etc/systemd/system/kone.service
		systemctl daemon-reload
	fi
	if [ -e $(RUN)/dockerd.pid ] && kill -0 $$(cat $(RUN)/dockerd.pid) 2>/dev/null; then
		echo "the dockerd that make up started goes on: stop it with kill $$(cat $(RUN)/dockerd.pid)"
	else
		rm -rf $(RUN)
	fi
	rm -f $(RUN)/kone.log

check: venv ## ruff, mypy, import-linter, ring 1 and 2: before each commit (no root)
	@$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	$(BIN)/python -m pytest -q --numprocesses 2 -m 'not ring3 and not ring4'

test: venv deps docker ## rings 1 to 4: needs root and Docker, sets itself up
	@$(MAKE) --no-print-directory testdeps
	$(BIN)/python -m pytest -q

# What rings 3 and 4 need beside the node's own packages. firewalld comes only where its package cannot start it.
.PHONY: testdeps
testdeps:
	@missing=""
	for package in postgresql containernetworking-plugins curl systemd ufw docker-registry apache2-utils openssl \
		$(if $(SYSTEMD),,firewalld dbus); do
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"
	done
	if [ -n "$$missing" ]; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	fi

rounds: venv deps ## what happens to a host, 20 rounds each, in every mode (root; ipvs in a virtual machine; an hour)
	KONE_TEST_ROUNDS=20 $(BIN)/python -m pytest -q -rP tests/contracts/test_mending.py tests/contracts/test_beside_firewalls.py
	$(BIN)/python -m tests.vm --timeout 7200 -- .ci/ipvs rounds

soak: venv deps docker ## 500 pods come and go and leave nothing behind (root, 10 min)
	KONE_TEST_SOAK=500 $(BIN)/python -m pytest -q -rP tests/e2e/test_soak.py

# IPVS, and control groups of version 2 alone, are on few machines that run tests: they are tested in a guest.
vm: venv ## the ipvs proxier with real packets, and cgroup v2, in a virtual machine (root)
	@missing=""
	for package in qemu-system-x86 busybox-static iptables ipset nftables; do
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"
	done
	if [ -n "$$missing" ]; then
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null
	fi
	apt-cache show linux-image-amd64 >/dev/null 2>&1 || apt-get update -qq
	# 125: there is no virtual machine to be had here (no emulator, no kernel package), or it did not answer in time.
	$(BIN)/python -m tests.vm --timeout 1200 -- .ci/ipvs || { code=$$?; [ $$code = 125 ] || exit $$code; echo "ipvs is left out"; }
	$(BIN)/python -m tests.vm --timeout 600 -- .ci/cgroup2 || { code=$$?; [ $$code = 125 ] || exit $$code; echo "cgroup v2 is left out"; }

replay: venv ## play the conversations recorded from upstream; the counts only rise (no root)
	@$(BIN)/python -m tests.replay

bench: venv ## measure the budgets of docs/benchmarks.md (the node's part needs root)
	@$(BIN)/python -m benchmarks

fuzz: venv ## send 200,000 generated requests to an API server of its own (no root; about ten minutes)
	@$(BIN)/python -m tests.fuzz --requests 200000

generate: venv ## make the generated tables again from their sources (no root)
	@$(BIN)/python -m kone.apimachinery.generate
	@$(BIN)/python -m kone.registry.generate

binary: venv ## make dist/kone: one file with the interpreter inside (no root)
	@$(BIN)/pyinstaller --clean --noconfirm --log-level WARN --distpath dist --workpath build/pyinstaller systemd/kone.spec
	ls -l dist/kone

unit: ## check the systemd unit (systemd-analyze)
	@copy=$$(mktemp -d)
	sed 's|@KONE@|/bin/true|' systemd/kone.service >$$copy/kone.service
	systemd-analyze verify $$copy/kone.service
	rm -r $$copy
