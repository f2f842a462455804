{
  nodes.proxy = import ./world/proxy.nix ./switch.toml;
  nodes.upstream = ./world/upstream.nix;
}
