# The tools for working on lean-proxy: `nix develop`.
{
  lib,
  stdenv,
  mkShell,
  cargo,
  cargo-deny,
  clippy,
  rust-analyzer,
  rustc,
  rustfmt,
  strace,
  valgrind,
  nixfmt-tree,
  python3,
  rustPlatform,
}:

mkShell {
  packages = [
    cargo
    cargo-deny
    clippy
    rust-analyzer
    rustc
    rustfmt
    nixfmt-tree
    (python3.withPackages (python: [
      python.mypy
      python.pyflakes
    ]))
  ]
  # for bench/guard.py; not available on macOS
  ++ lib.filter (lib.meta.availableOn stdenv.hostPlatform) [
    strace
    valgrind
  ];
  RUST_SRC_PATH = "${rustPlatform.rustLibSrc}";
}
