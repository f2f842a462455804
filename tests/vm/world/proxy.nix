# The machine with the proxy: `services.leanProxy` with the options of NAME.toml, which rig.py reads too. Two tables of
# that file are not options of the module: `machine` (firewall = false; ports = [...] to open besides those of `listen`)
# and `specialisation`, systems with other options and settings.
file:
{
  config,
  lib,
  pkgs,
  ...
}:

let
  given = lib.importTOML file;
  machine = given.machine or { };
  specialisations = given.specialisation or { };
  override = lib.mapAttrs (_: lib.mkForce);
in
{
  services.leanProxy = {
    enable = true;
    openFirewall = true;
  }
  // removeAttrs given [
    "machine"
    "specialisation"
  ];
  networking.firewall.enable = machine.firewall or true;
  networking.firewall.allowedTCPPorts = machine.ports or [ ];

  system.switch.enable = lib.mkIf (specialisations != { }) true;
  specialisation = lib.mapAttrs (_: change: {
    configuration.services.leanProxy =
      override (removeAttrs change [ "settings" ])
      // lib.optionalAttrs (change ? settings) { settings = override change.settings; };
  }) specialisations;

  environment.systemPackages = [
    config.services.leanProxy.package
    pkgs.python3
  ];
  environment.etc."vm/client.py".source = ./client.py;
  documentation.enable = false;
  virtualisation.memorySize = 512;
  virtualisation.cores = 2;
}
