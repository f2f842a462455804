# The other machine: the upstream, and the clients.
{ pkgs, ... }:

{
  systemd.services.upstream = {
    description = "the upstream of the test";
    wantedBy = [ "multi-user.target" ];
    after = [ "network.target" ];
    serviceConfig = {
      ExecStart = "${pkgs.python3}/bin/python3 /etc/vm/upstream.py 8080";
      LimitNOFILE = 65536;
    };
  };

  environment.systemPackages = [
    pkgs.openssl
    (pkgs.python3.withPackages (packages: [ packages.grpcio ]))
  ];
  environment.etc."vm/client.py".source = ./client.py;
  environment.etc."vm/frames.py".source = ./frames.py;
  environment.etc."vm/rpc.py".source = ./rpc.py;
  environment.etc."vm/upstream.py".source = ./upstream.py;
  networking.firewall.enable = false;
  documentation.enable = false;
  virtualisation.memorySize = 512;
  virtualisation.cores = 2;
}
