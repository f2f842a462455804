{
  nodes.proxy = import ./world/proxy.nix ./limits.toml;
  nodes.upstream = ./world/upstream.nix;
}
