# The program. With pkgsStatic (musl) one static binary; with plain pkgs a dynamic build of the same sources, as in the
# lint check.
{
  lib,
  stdenv,
  rustPlatform,
  nukeReferences,
  # `passthru.tests`: the flake passes its checks.
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

    # Only files that cargo reads, so that a change of the README does not cause a rebuild.
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
        ../layout_busy.ld
        ../src
        ../tests/e2e
      ];
    };
    cargoLock.lockFile = ../Cargo.lock;

    # Every build runs the unit tests. The end-to-end tests run in the sandbox too, but they take minutes, so only
    # `nix flake check` runs them (checks.nix).
    doCheck = true;
    # Not the release profile: linking the tests with optimization takes minutes.
    checkType = "debug";
    cargoTestFlags = lib.optional (lib.pathExists ../src/lib.rs) "--lib" ++ [ "--bins" ];

    # The hook tells cargo not to strip, and by default only debug information is stripped; the symbols are 14 % of the
    # file.
    stripAllList = [ "bin" ];

    # Panic messages may contain the folder in which std was built. Nix takes such a path for a dependency, and the image
    # would contain a compiler.
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
      # layout.ld matches names of sections: at least 64 kB of code must be in the section that it fills
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
      # the folder below target/ that cargo builds in
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
