{
  nodes.proxy = import ./world/proxy.nix ./https.toml;
  nodes.upstream = ./world/upstream.nix;
}
