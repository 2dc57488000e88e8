# The two commands: `make demo` shows Lamina at work, `make test` says whether it works. Both do
# their own set-up. CONTRIBUTING.md tells what each target does.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR = $(DESTDIR)$(PREFIX)/bin
SHARE = $(DESTDIR)$(PREFIX)/share

# Where cargo puts things, which the user may have moved.
TARGET = $(or $(CARGO_TARGET_DIR),target)
RELEASE = $(TARGET)/release/lamina

.PHONY: all demo test unit integration instructions fuzz lint soak fmt bench install uninstall clean

all:
	scripts/setup build
	$(CARGO) build --release --locked

demo:
	scripts/setup demo
	$(CARGO) build --release --locked
	LAMINA=$(abspath $(RELEASE)) scripts/demo

test:
	scripts/setup test
	scripts/test

# Parts of `make test`, for the impatient.
lint unit instructions integration fuzz:
	scripts/setup test
	scripts/test $@

# Hours of what `make test` does for minutes.
soak:
	scripts/setup test
	scripts/soak $(SOAK)

bench:
	scripts/setup bench
	$(CARGO) build --release --locked
	LAMINA=$(abspath $(RELEASE)) benches/run $(BENCH)

fmt:
	$(CARGO) fmt --all

install: all
	install -D -m 755 $(RELEASE) $(BINDIR)/lamina
	ln -sf lamina $(BINDIR)/lamina-overlay
	mkdir -p $(SHARE)/man/man1
	$(RELEASE) gen-man $(SHARE)/man/man1
	mkdir -p $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(RELEASE) completions bash > $(SHARE)/bash-completion/completions/lamina
	$(RELEASE) completions zsh > $(SHARE)/zsh/site-functions/_lamina
	$(RELEASE) completions fish > $(SHARE)/fish/vendor_completions.d/lamina.fish

uninstall:
	rm -f $(BINDIR)/lamina $(BINDIR)/lamina-overlay $(SHARE)/man/man1/lamina.1 $(SHARE)/man/man1/lamina-*.1
	rm -f $(SHARE)/bash-completion/completions/lamina $(SHARE)/zsh/site-functions/_lamina
	rm -f $(SHARE)/fish/vendor_completions.d/lamina.fish

clean:
	$(CARGO) clean
	rm -rf target/fixtures target/tools target/fuzz
