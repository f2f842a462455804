# What `nix flake check` proves on each system. The virtual machines are in tests/vm.
{ self, pkgs }:

let
  inherit (pkgs) lib;
  packages = self.packages.${pkgs.stdenv.hostPlatform.system};
in
{
  # The static binary, with all its tests: the end-to-end ones start it as it was built for release. They
  # speak over loopback only, which the sandbox has, and wait a bounded time for each answer: as many at a
  # time as there are cores starve each other on a busy machine with many.
  package = packages.lean-proxy.overrideAttrs (package: {
    cargoTestFlags = [ ];
    preCheck = ''
      export LEAN_PROXY_BIN=$PWD/target/${package.passthru.target}/release/lean-proxy
      NIX_BUILD_CORES=$((NIX_BUILD_CORES < 8 ? NIX_BUILD_CORES : 8))
    '';
  });

  # services.leanProxy, case by case.
  module = import ./module-test.nix { inherit self pkgs; };

  # The house's lints, every warning an error; on glibc, for clippy needs no musl.
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

  # Exactly one file, and the settings that a `docker run` relies on.
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

  # All that the program is made of and nothing of the tests, each with its checksum, and no edge into the void.
  bill = pkgs.runCommand "lean-proxy-bill" { nativeBuildInputs = [ pkgs.jq ]; } ''
    jq -e '.bomFormat == "CycloneDX"
      and ([.components[].name] | contains(["rustls", "tokio"]) and (contains(["rcgen"]) | not))
      and all(.components[]; .hashes[0].content | length == 64)
      and ([.dependencies[].dependsOn[]] - [.components[]."bom-ref"]) == []' ${packages.sbom}
    touch $out
  '';
}
// import ../tests/vm { inherit self pkgs; }
