{
  nodes.proxy.imports = [
    (import ./world/proxy.nix ./floods.toml)
    ./world/flood.nix
  ];
  nodes.upstream.imports = [
    ./world/upstream.nix
    ./world/flood.nix
  ];
}
