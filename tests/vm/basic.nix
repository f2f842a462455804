{
  nodes.proxy = import ./world/proxy.nix ./basic.toml;
  nodes.upstream = ./world/upstream.nix;
}
