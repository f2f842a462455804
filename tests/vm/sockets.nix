{
  nodes.proxy = import ./world/proxy.nix ./sockets.toml;
  nodes.upstream = ./world/upstream.nix;
}
