# `nix run .# -- config.yaml`
{ self, pkgs }:

let
  program = self.packages.${pkgs.stdenv.hostPlatform.system}.lean-proxy;
in
{
  type = "app";
  program = pkgs.lib.getExe program;
  meta = { inherit (program.meta) description; };
}
