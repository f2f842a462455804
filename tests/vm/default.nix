# One NixOS test for each pair NAME.nix and NAME.py: the machines, and the test script. NAME.toml has the options of
# `services.leanProxy`. The scripts are plain Python without substitutions, so that run.sh can run the same files on
# machines made without Nix.
{ self, pkgs }:

let
  inherit (pkgs) lib;
  names = lib.filter (name: lib.pathExists (./. + "/${name}.py")) (
    map (lib.removeSuffix ".nix") (lib.attrNames (builtins.readDir ./.))
  );
  test =
    name:
    pkgs.testers.runNixOSTest {
      imports = [ (./. + "/${name}.nix") ];
      name = "lean-proxy-${name}";
      defaults.imports = [ self.nixosModules.default ];
      _module.args.image = self.packages.${pkgs.stdenv.hostPlatform.system}.dockerImage;
      testScript = builtins.readFile (./. + "/${name}.py");
    };
in
lib.listToAttrs (map (name: lib.nameValuePair "vm-${name}" (test name)) names)
