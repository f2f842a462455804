{
  nodes.proxy = import ./world/proxy.nix ./grpc.toml;
  nodes.upstream = ./world/upstream.nix;
}
