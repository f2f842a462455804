# The checks of `nix flake check` on each system. The virtual machines are in tests/vm.
{ self, pkgs }:

let
  inherit (pkgs) lib;
  packages = self.packages.${pkgs.stdenv.hostPlatform.system};
in
{
  # The static binary with all its tests. The end-to-end tests start the release build and use loopback only, which
  # the sandbox has. Each of their waits is bounded, so on a busy machine with many cores a test per core would be
  # too many.
  package = packages.lean-proxy.overrideAttrs (package: {
    cargoTestFlags = [ ];
    preCheck = ''
      export LEAN_PROXY_BIN=$PWD/target/${package.passthru.target}/release/lean-proxy
      NIX_BUILD_CORES=$((NIX_BUILD_CORES < 8 ? NIX_BUILD_CORES : 8))
    '';
  });

  # services.leanProxy, evaluated for many sets of options.
  module = import ./module-test.nix { inherit self pkgs; };

  # rustfmt and clippy, every warning an error; on glibc, because clippy does not need musl.
  lint = (pkgs.callPackage ./package.nix { }).overrideAttrs (package: {
    pname = "lean-proxy-lint";
    nativeBuildInputs = package.nativeBuildInputs ++ [
      pkgs.clippy
      pkgs.rustfmt
    ];
    buildPhase = ''
      cargo fmt --check
      cargo clippy --all-targets --offline -- -D warnings
    '';
    installPhase = "touch $out";
    doCheck = false;
    doInstallCheck = false;
    dontFixup = true;
  });

  format = pkgs.runCommand "lean-proxy-format" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${
      lib.fileset.toSource {
        root = ../.;
        fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../.;
      }
    } -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';

  # The image has exactly one file, and the configuration of nix/image.toml.
  image =
    pkgs.runCommand "lean-proxy-image"
      {
        nativeBuildInputs = [
          pkgs.jq
          pkgs.python3
        ];
        src = lib.fileset.toSource {
          root = ../.;
          fileset = lib.fileset.unions [
            ../.ci/image.py
            ../Cargo.toml
            ../Dockerfile
            ./image.toml
          ];
        };
      }
      ''
        tar -xf ${packages.dockerImage}
        test "$(tar -tf */layer.tar | sed 's,^\./,,' | grep -v '/$' | grep .)" = lean-proxy
        python3 $src/.ci/image.py
        python3 $src/.ci/image.py "$(jq -r '.[0].Config' manifest.json)"
        touch $out
      '';

  # The bill lists the program's crates and none of the tests', each with its checksum, and every dependency is listed.
  bill = pkgs.runCommand "lean-proxy-bill" { nativeBuildInputs = [ pkgs.jq ]; } ''
    jq -e '.bomFormat == "CycloneDX"
      and ([.components[].name] | contains(["rustls", "tokio"]) and (contains(["rcgen"]) | not))
      and all(.components[]; .hashes[0].content | length == 64)
      and ([.dependencies[].dependsOn[]] - [.components[]."bom-ref"]) == []' ${packages.sbom}
    touch $out
  '';
}
// import ../tests/vm { inherit self pkgs; }
