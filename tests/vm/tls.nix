{
  nodes.proxy = import ./world/proxy.nix ./tls.toml;
  nodes.upstream = ./world/upstream.nix;
}
