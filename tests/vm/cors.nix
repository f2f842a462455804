{
  nodes.proxy = import ./world/proxy.nix ./cors.toml;
  nodes.upstream = ./world/upstream.nix;
}
