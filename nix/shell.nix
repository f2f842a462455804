# What one needs to work on lean-proxy: `nix develop`.
{
  mkShell,
  cargo,
  clippy,
  rust-analyzer,
  rustc,
  rustfmt,
  nixfmt-tree,
  python3,
  rustPlatform,
}:

mkShell {
  packages = [
    cargo
    clippy
    rust-analyzer
    rustc
    rustfmt
    nixfmt-tree
    (python3.withPackages (python: [
      python.mypy
      python.pyflakes
    ]))
  ];
  RUST_SRC_PATH = "${rustPlatform.rustLibSrc}";
}
