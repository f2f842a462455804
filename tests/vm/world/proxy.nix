# The machine with the proxy: `services.leanProxy` as NAME.toml has it, which rig.py reads too.
options:
{
  config,
  lib,
  pkgs,
  ...
}:

{
  services.leanProxy = {
    enable = true;
    openFirewall = true;
  }
  // lib.importTOML options;

  environment.systemPackages = [
    config.services.leanProxy.package
    pkgs.python3
  ];
  environment.etc."vm/client.py".source = ./client.py;
  documentation.enable = false;
  virtualisation.memorySize = 512;
  virtualisation.cores = 2;
}
