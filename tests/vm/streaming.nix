{
  nodes.proxy = import ./world/proxy.nix ./streaming.toml;
  nodes.upstream = ./world/upstream.nix;
}
