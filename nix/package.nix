# The program: one static binary. Called with pkgsStatic, that is with musl; a plain pkgs
# gives an ordinary dynamic build of the same sources (the lint check uses it so).
{
  lib,
  stdenv,
  rustPlatform,
  nukeReferences,
  # What `passthru.tests` names: the flake puts its checks here.
  tests ? { },
}:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
  static = stdenv.hostPlatform.isStatic;
in
rustPlatform.buildRustPackage (
  {
    pname = manifest.name;
    inherit (manifest) version;

    # What cargo reads and nothing else, so that a word in the README rebuilds nothing.
    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../Cargo.toml
        ../Cargo.lock
        ../.clippy.toml
        ../bench/traffic.rs
        ../build.rs
        ../config.yaml
        ../layout.ld
        ../src
        ../tests/e2e
      ];
    };
    cargoLock.lockFile = ../Cargo.lock;

    # The unit tests, at every build. The end-to-end tests run in the sandbox as well, but there are 300 of
    # them and they run for over a minute: `nix flake check` runs them (checks.nix).
    doCheck = true;
    # Without the release profile: linking the tests as one optimized unit costs minutes.
    checkType = "debug";
    cargoTestFlags = lib.optional (lib.pathExists ../src/lib.rs) "--lib" ++ [ "--bins" ];

    # The hook asks cargo not to strip, and the default strips debug information alone: the symbols are
    # 14 % of the file.
    stripAllList = [ "bin" ];

    # Panic messages may name the folder that std was built in: words, but Nix takes them for
    # dependencies, and the image would ship a compiler.
    nativeBuildInputs = [ nukeReferences ];
    postFixup = lib.optionalString static ''
      nuke-refs $out/bin/lean-proxy
    '';

    doInstallCheck = true;
    installCheckPhase = ''
      runHook preInstallCheck
      $out/bin/lean-proxy --version | grep -F ${manifest.version}
      $out/bin/lean-proxy --check config.yaml
    ''
    + lib.optionalString static ''
      if $READELF -lW $out/bin/lean-proxy | grep INTERP || $READELF -dW $out/bin/lean-proxy | grep NEEDED; then
        echo "lean-proxy is not static" >&2
        exit 1
      fi
      # layout.ld works by names: at least 64 kB of code stand where it puts what is often used
      if ! $READELF -SW $out/bin/lean-proxy | grep -qE '\.text_busy +PROGBITS( +[0-9a-f]+){2} 0*[1-9a-f][0-9a-f]{4,} '; then
        echo "layout.ld moved nothing: .text_busy is missing or empty" >&2
        exit 1
      fi
    ''
    + ''
      runHook postInstallCheck
    '';

    passthru = {
      inherit tests;
      # where cargo puts what it builds, below target/
      target = stdenv.hostPlatform.rust.cargoShortTarget;
    };

    meta = {
      inherit (manifest) description;
      maintainers = [ { name = "The lean-proxy authors"; } ];
      license = lib.licenses.mit;
      mainProgram = "lean-proxy";
      platforms = lib.platforms.linux;
    }
    // lib.optionalAttrs (manifest ? repository) { homepage = manifest.repository; };
  }
  // lib.optionalAttrs static { allowedReferences = [ ]; }
)
