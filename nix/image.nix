# The container image: the binary and nothing else. Its config is mounted at /config.yaml,
# or anywhere, named as the argument of `docker run`.
{
  lib,
  dockerTools,
  runCommand,
  lean-proxy,
}:

let
  # A real file, not a link into the store; no reference, so that no other path comes along.
  root = runCommand "lean-proxy-root" { allowedReferences = [ ]; } ''
    install -D -m 555 ${lib.getExe lean-proxy} $out/lean-proxy
  '';
  second = 1000000000;
in
dockerTools.buildImage {
  name = lean-proxy.pname;
  tag = "latest";
  copyToRoot = root;
  # `created` stays at its default, 1970-01-01T00:00:01Z: same sources, same bytes.
  config = {
    Entrypoint = [ "/lean-proxy" ];
    Cmd = [ "/config.yaml" ];
    # Numeric, for there is no /etc/passwd. Docker lets any user bind port 80.
    User = "65532:65532";
    ExposedPorts."80/tcp" = { };
    # Where a config listens that leaves it to the environment, as the repository's config.yaml does.
    Env = [ "PORT=80" ];
    # Asks whatever config process 1 was started with.
    Healthcheck = {
      Test = [
        "CMD"
        "/lean-proxy"
        "--health"
      ];
      Interval = 30 * second;
      Timeout = 5 * second;
      StartPeriod = 5 * second;
      Retries = 3;
    };
    Labels = {
      "org.opencontainers.image.title" = lean-proxy.pname;
      "org.opencontainers.image.description" = lean-proxy.meta.description;
      "org.opencontainers.image.version" = lean-proxy.version;
      "org.opencontainers.image.licenses" = lean-proxy.meta.license.spdxId;
    };
  };
}
