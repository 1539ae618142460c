# What there is to do here. `make help` lists it.
# Paths are relative throughout: the checkout may lie anywhere, also where a path has spaces or quotes.

HOST   := $(shell rustc -vV | sed -n 's/^host: //p')
STATIC := cargo build --release --locked --target $(HOST) --target-dir
# Set by DOCKER= (empty) to do without an engine that is there.
DOCKER := $(shell docker version >/dev/null 2>&1 && echo yes)

# Static, and without a path of this machine, so that a binary is the same wherever the checkout lies. The separator is
# cargo's own: paths may have spaces.
SEPARATOR := $(shell printf '\037')
sim bin programs: export CARGO_ENCODED_RUSTFLAGS := -Ctarget-feature=+crt-static$(SEPARATOR)--remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo$(SEPARATOR)--remap-path-prefix=$(CURDIR)=otpqr

.DEFAULT_GOAL := help
.PHONY: help demo test attacks soak bench bench-run fuzz check image scone can-sign scone-acceptance can-attest sim programs can-link-statically rust-script warm bin clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: warm sim programs $(if $(DOCKER),image) ## the whole flow, step by step, attacks included: what to look at first
	cargo run --locked --quiet --example demo -- $(if $(DOCKER),,--platform sim-native)

# Tests wait for containers, codes and one another: more of them at a time than there are cores.
test: export RUST_TEST_THREADS ?= 4
test: warm sim bin programs $(if $(DOCKER),image) ## all tests; those that need a Docker Engine say so when they are skipped
	cargo test --locked --manifest-path otpqr/Cargo.toml
	cargo test --locked --manifest-path programs/permit/Cargo.toml --features gate
	cargo test --locked --manifest-path programs/signer/Cargo.toml
	cargo test --locked --manifest-path programs/signer/cosign-check/Cargo.toml
	cargo test --locked --workspace

# The harness prints its own lines around the tests' words; what fails is on standard error.
attacks: sim $(if $(DOCKER),image) ## each attack of the documentation, and what stopped it or reveals it
	@cargo test --locked --quiet --test scripts attacks:: -- --nocapture --test-threads=1 >target/attacks.txt
	@sed -n 's/^attack: //p' target/attacks.txt

soak: ## single use, long: 64 clients and one code, 64 takers and 32 starts, ten thousand times each
	cargo test --locked --release --manifest-path programs/permit/Cargo.toml -- --ignored --nocapture ten_thousand
	cargo test --locked --release --package scone-sim --test single_use -- --ignored

bench: bench-run warm ## what the start of a script, CAS, the start of a program and the sync of a volume cost here, as tables
	cargo bench --locked --quiet --package otpqr-bundle --bench warm_start --bench code_to_main
	cargo bench --locked --quiet --package scone-sim --bench cas

bench-run: sim ## the runtime's part of it: the start of a program, stage by stage, and a sync
	cargo bench --locked --quiet --package scone-run --bench start --bench volume

# The instrumentation is the stable compiler's own, but not one that it offers.
fuzz: ## what strangers can send, made up by libFuzzer: each target for SECONDS=60
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz --version 0.13.2
	for target in $(notdir $(basename $(wildcard simulator/fuzz/fuzz_targets/*.rs))); do \
	  mkdir -p simulator/fuzz/corpus/$$target && (cd simulator/fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . --sanitizer none $$target \
	    corpus/$$target seeds/$$target -- -max_total_time=$(or $(SECONDS),60) -timeout=10 -print_final_stats=1) || exit; \
	done

# clippy's defaults, an if for a choice between two, and nothing newer than the rustc that a manifest names.
LINTS := -D warnings -D clippy::match_bool -D clippy::incompatible_msrv
check: ## the gate: formatting, lints, documentation
	cargo fmt --all --check
	cargo fmt --manifest-path otpqr/Cargo.toml --check
	cargo fmt --manifest-path programs/permit/Cargo.toml --check
	cargo fmt --manifest-path programs/signer/Cargo.toml --check
	cargo fmt --manifest-path programs/signer/cosign-check/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- $(LINTS)
	cargo clippy --locked --manifest-path otpqr/Cargo.toml --all-targets -- $(LINTS)
	cargo clippy --locked --manifest-path programs/permit/Cargo.toml --all-features --all-targets -- $(LINTS)
	cargo clippy --locked --manifest-path programs/signer/Cargo.toml --all-targets -- $(LINTS)
	cargo clippy --locked --manifest-path programs/signer/cosign-check/Cargo.toml --all-targets -- $(LINTS)
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet -p scone-protocol -p scone-run -p scone-sim -p bundle --lib

# The image is what `sim` built, so that container and host run the very same files, and measure the same.
image: sim ## the container image otpqr:sim
	@docker version >/dev/null 2>&1 || { echo "there is no Docker Engine: apt-get install docker.io, start dockerd" >&2; exit 3; }
	docker build --quiet --target sim --file Dockerfile.otpqr --tag otpqr:sim .

# The key is shown to the container that signs, and to no build: no layer and no cache has it.
scone: can-sign sim ## the container image otpqr:scone, signed for production: SIGNING_KEY=FILE ISVPRODID=0 ISVSVN=0
	docker build --target scone-build $(SCONE_BUILD) --tag $(SCONE_IMAGE)-build .
	key=$$(realpath "$(SIGNING_KEY)") && \
	  container=$$(docker create --network=none --mount "type=bind,\"src=$$key\",dst=/run/signing-key.pem,readonly" --entrypoint=/bin/sh $(SCONE_IMAGE)-build -ec '$(SCONE_SIGN)') && \
	  docker start --attach "$$container" && docker commit "$$container" $(SCONE_IMAGE)-signed; signed=$$?; docker rm "$$container" && exit $$signed
	docker build --target scone $(SCONE_BUILD) --build-arg SCONE_BUILT=$(SCONE_IMAGE)-signed --tag $(SCONE_IMAGE) .
can-sign:
	@[ -r "$(SIGNING_KEY)" ] || { echo "name the key that signs: make scone SIGNING_KEY=FILE (a new one: openssl genrsa -3 -out FILE 3072)" >&2; exit 2; }
SCONE_IMAGE := otpqr:scone

scone-acceptance: can-attest warm ## an account's life on a SCONE CAS, and a report: CAS=ADDRESS CREATE='-CS --mrenclave HEX' REPORT=acceptance-report.md
	cargo run --locked --quiet --example acceptance -- --cas "$(CAS)" --image $(SCONE_IMAGE) --report "$(REPORT)" $(if $(CLOCK),--clock "$(CLOCK)") -- $(CREATE)
can-attest:
	@[ -n "$(CAS)" ] || { echo "name the CAS: make scone-acceptance CAS=ADDRESS (and how it is attested: CREATE='-CS --mrenclave HEX')" >&2; exit 2; }
REPORT := acceptance-report.md

ISVPRODID := 0
ISVSVN := 0
SCONE_BUILD = --file Dockerfile.otpqr $(foreach arg,SCONE_REGISTRY SCONE_CROSSCOMPILER SCONE_BASE,$(if $($(arg)),--build-arg $(arg)=$($(arg))))
# What can be measured is what it was signed with: nothing is left to variables of whoever starts it.
SCONE_SIGN = for program in /otpqr/target/*/release/otpqr /programs/permit/target/*/release/gate; do \
  scone-signer sign --key=/run/signing-key.pem --production --isvprodid=$(ISVPRODID) --isvsvn=$(ISVSVN) "$$program"; \
  scone-signer info --yaml "$$program"; done

# One package a call: built together, cargo would unify their features, and a change of CAS would change the runtime.
sim: ## the simulator, otpqr, the gate and the entry as static binaries, in simulator/bin
	$(STATIC) target --package scone-run
	$(STATIC) target --package scone-sim
	$(STATIC) target --package otpqr-entry
	$(STATIC) otpqr/target --manifest-path otpqr/Cargo.toml
	$(STATIC) programs/permit/target --manifest-path programs/permit/Cargo.toml --features gate
	install -d -m 0755 simulator/bin $(addprefix simulator/bin/rootfs/,bin out root .sealed)
	install -C target/$(HOST)/release/scone-sim simulator/bin
	install -C target/$(HOST)/release/scone-run target/$(HOST)/release/entry simulator/bin/rootfs
	install -C otpqr/target/$(HOST)/release/otpqr programs/permit/target/$(HOST)/release/gate simulator/bin/rootfs/bin
	ln -sf rootfs/scone-run simulator/bin/scone-run
	ln -sf scone-sim simulator/bin/scone
	ln -sf scone-sim simulator/bin/scone-signer

programs: ## the other confidential programs as static binaries, in programs/bin
	$(STATIC) programs/signer/target --manifest-path programs/signer/Cargo.toml
	install -d -m 0755 programs/bin
	install -C programs/signer/target/$(HOST)/release/signer programs/bin

# What a linker says does not tell what to install.
sim bin programs: | can-link-statically
can-link-statically:
	@echo 'int main(void) { return 0; }' | cc -static -x c -o /dev/null - 2>/dev/null || { echo "cc links no static program:" \
	  "dnf install gcc glibc-static (Fedora, RHEL), apt-get install gcc libc6-dev (Debian, Ubuntu)" >&2; exit 3; }

rust-script: ## rust-script, which runs the scripts
	@command -v rust-script >/dev/null || cargo install --locked rust-script --version 0.36.0

# rust-script resolves each script's dependencies by itself; a lock that is there before the first build is kept. Asked for the
# package of a script it has not seen for a week, rust-script names it and deletes it: hence asked twice.
warm: rust-script ## compile the scripts now, with the versions that were tested
	@for script in create gen_qr add_auth roll_forward protect start approve doctor; do \
	  package=$$(rust-script --package ./scripts/$$script.rs) && { [ -d "$$package" ] || package=$$(rust-script --package ./scripts/$$script.rs); } && \
	  cp Cargo.lock "$$package/" && ./scripts/$$script.rs --version || exit; \
	done

bin: ## the scripts as static binaries, in bin, for hosts without a toolchain: they are told by OTPQR_ROOT where this is
	$(STATIC) target --package otpqr-bundle --bins
	install -d -m 0755 bin
	for script in $(notdir $(basename $(wildcard scripts/*.rs))); do install -C target/$(HOST)/release/$$script bin || exit; done

clean: ## remove what was built; state/ stays
	cargo clean --quiet
	rm -rf otpqr/target programs/*/target programs/*/*/target simulator/fuzz/target simulator/bin programs/bin bin
