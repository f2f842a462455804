{ image, ... }:

{
  # The image in Docker, with the memory limit of the README.
  nodes.proxy =
    { pkgs, ... }:
    {
      virtualisation.docker.enable = true;
      documentation.enable = false;
      virtualisation.memorySize = 1024;
      virtualisation.cores = 2;
      networking.firewall.enable = false;
      environment.systemPackages = [ pkgs.python3 ];
      environment.etc."vm/client.py".source = ./world/client.py;
      environment.etc."vm/config.yaml".source = ../../config.yaml;
      environment.etc."vm/image.tar.gz".source = image;
    };
  nodes.upstream = ./world/upstream.nix;
}
