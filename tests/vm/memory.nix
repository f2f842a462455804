{
  nodes.proxy = import ./world/proxy.nix ./memory.toml;
  nodes.upstream = ./world/upstream.nix;
}
