{
  description = "Reverse proxy in one static binary that stays inside ten megabytes whatever its clients do";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      servers = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      desks = servers ++ [ "aarch64-darwin" ];
      eachOf = systems: f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
    in
    {
      packages = eachOf servers (pkgs: rec {
        default = lean-proxy;
        lean-proxy = pkgs.pkgsStatic.callPackage ./nix/package.nix {
          tests = self.checks.${pkgs.stdenv.hostPlatform.system};
        };
        # Linked to glibc, with the Rust of the binary cache as it is: ready in a minute or two.
        glibc = pkgs.callPackage ./nix/package.nix { };
        dockerImage = pkgs.callPackage ./nix/image.nix {
          inherit lean-proxy;
          revision = self.rev or self.dirtyRev or "unknown";
        };
        sbom = pkgs.callPackage ./nix/sbom.nix { };
      });

      apps = eachOf servers (pkgs: {
        default = import ./nix/app.nix { inherit self pkgs; };
      });

      devShells = eachOf desks (pkgs: {
        default = pkgs.callPackage ./nix/shell.nix { };
      });

      checks = eachOf servers (pkgs: import ./nix/checks.nix { inherit self pkgs; });

      nixosModules.default = lib.modules.importApply ./nix/module.nix { inherit self; };

      overlays.default = final: _prev: {
        lean-proxy = final.pkgsStatic.callPackage ./nix/package.nix { };
      };

      formatter = eachOf desks (pkgs: pkgs.nixfmt-tree);
    };
}
