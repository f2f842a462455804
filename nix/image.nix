# The container image: the binary and nothing else. Its configuration is mounted at /config.yaml, or at another path that
# is the argument of `docker run`.
{
  lib,
  dockerTools,
  runCommand,
  lean-proxy,
  # The commit that it is built from.
  revision ? "unknown",
}:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
  config = lib.importTOML ./image.toml;
  labels = lib.mapAttrs (_: key: manifest.${key}) (
    lib.filterAttrs (_: key: manifest ? ${key}) config.Labels
  );

  # A regular file, not a link into the store, and without references, so that no other store path is included.
  root = runCommand "lean-proxy-root" { allowedReferences = [ ]; } ''
    install -D -m 555 ${lib.getExe lean-proxy} $out/lean-proxy
  '';
in
dockerTools.buildImage {
  name = lean-proxy.pname;
  tag = "latest";
  copyToRoot = root;
  # `created` keeps its default, 1970-01-01T00:00:01Z, so that the image is reproducible.
  config = config // {
    Labels = labels // {
      "org.opencontainers.image.revision" = revision;
    };
  };
}
