{
  nodes.proxy = import ./world/proxy.nix ./reload.toml;
  nodes.upstream = ./world/upstream.nix;
}
