{
  nodes.proxy = import ./world/proxy.nix ./hardening.toml;
  nodes.upstream = ./world/upstream.nix;
}
