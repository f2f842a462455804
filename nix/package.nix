# The program: one static binary. Called with pkgsStatic, that is with musl; a plain pkgs
# gives an ordinary dynamic build of the same sources (the lint check uses it so).
{
  lib,
  stdenv,
  rustPlatform,
  nukeReferences,
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

    # The unit tests, for everybody who builds. The end-to-end tests run in the sandbox, too, but there are
    # 300 of them, they want to be built, they run for over a minute and look at the clock: a busy machine
    # should not cost anybody the program. `nix flake check` runs them (checks.nix).
    doCheck = true;
    cargoTestFlags = [ "--bins" ];

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
    ''
    + ''
      runHook postInstallCheck
    '';

    meta = {
      inherit (manifest) description;
      license = lib.licenses.mit;
      mainProgram = "lean-proxy";
      platforms = lib.platforms.linux;
    };
  }
  // lib.optionalAttrs static { allowedReferences = [ ]; }
)
